"""The networks being grown."""

from envs.hosts.analytic import AnalyticHosts, SeedCurve
from envs.hosts.base import Host, Segment
from envs.hosts.conv import ConvHost

__all__ = ["AnalyticHosts", "ConvHost", "Host", "SeedCurve", "Segment"]
