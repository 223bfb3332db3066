"""What pip installs: the packages, and the configs inside senet, where `senet.config` finds them."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = [
    "senet.configs",
    *(f"senet.configs.{folder.name}" for folder in Path("configs").iterdir() if folder.is_dir()),
]

setup(
    packages=find_packages(include=["senet*", "launch*"]) + CONFIGS,
    package_dir={"senet.configs": "configs"},
    package_data={"": ["*.yaml", "*.json", "*.md", "*.css", "*.txt"]},
)
