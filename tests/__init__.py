"""A package of its own: sagemaker brings a package named tests too, which would hide a folder of that name."""
