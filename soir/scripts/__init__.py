"""The scripts as modules of the package. An installation has them in this folder; a clone, which needs this file, at
its top level."""

import os

__path__ = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
