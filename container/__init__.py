"""What runs inside a job's machine: the image and its entry point."""
