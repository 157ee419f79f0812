"Packaging metadata, read from settings.ini (the single source for version, requirements and the like)."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
cp = ConfigParser(delimiters=["="])
cp.read(here / "settings.ini", encoding="utf-8")
cfg = cp["DEFAULT"]
readme = here / "README.md"

setup(
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license={"apache2": "Apache-2.0", "mit": "MIT"}.get(cfg["license"], cfg["license"]),
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=shlex.split(cfg.get("requirements", "")),
    extras_require={
        "dev": shlex.split(cfg.get("dev_requirements", "")),
        "data": shlex.split(cfg.get("data_requirements", "")),  # downloads MNIST and CIFAR-10
        "audit": shlex.split(cfg.get("audit_requirements", "")),  # report.html of `samplesplit audit`
        "dp": shlex.split(cfg.get("dp_requirements", "")),  # `train_dp`, differentially private training
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    package_data={cfg["lib_path"]: ["py.typed", "*.j2", "*.json"]},  # types; the audit's page and schema
    zip_safe=False,
)
