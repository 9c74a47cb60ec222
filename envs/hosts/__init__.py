"""The networks being grown."""

from envs.hosts.base import Host, Segment
from envs.hosts.conv import ConvHost

__all__ = ["ConvHost", "Host", "Segment"]
