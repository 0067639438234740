"""The settings of a run: one table, read from YAML and flags."""

from seqclf.config.load import load_config as load_config
from seqclf.config.settings import Config as Config
