"""What pip installs: the packages, and the configs inside senet, where `senet.config` finds them."""

from setuptools import find_packages, setup

PARTS = ("", ".imagenet", ".cifar10", ".cifar100", ".ablations", ".debug")

setup(
    packages=find_packages(include=["senet*", "launch*"]) + [f"senet.configs{part}" for part in PARTS],
    package_dir={"senet.configs": "configs"},
    package_data={"": ["*.yaml", "*.json", "*.md", "*.css", "*.txt"]},
)
