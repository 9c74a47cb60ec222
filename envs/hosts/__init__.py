"""The networks being grown."""

from envs.hosts.conv import ConvHost
from envs.hosts.module import ModuleHost, module_seed
from envs.hosts.text import TextHost

__all__ = ["ConvHost", "ModuleHost", "TextHost", "module_seed"]
