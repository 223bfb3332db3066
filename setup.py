"""What pip installs: the packages, and the configs inside senet, where `senet.config` finds them."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["senet*", "launch*"]), "senet.configs"],
    package_dir={"senet.configs": "configs"},
    package_data={"": ["*.yaml", "*.json", "*.md", "*.css", "*.txt"], "senet.configs": ["*/*.yaml"]},
)
