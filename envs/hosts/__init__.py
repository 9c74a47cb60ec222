"""The networks being grown."""

from envs.hosts.base import Host, Segment
from envs.hosts.conv import ConvHost
from envs.hosts.module import ModuleHost, module_seed
from envs.hosts.text import TextHost

__all__ = ["ConvHost", "Host", "ModuleHost", "Segment", "TextHost", "module_seed"]
