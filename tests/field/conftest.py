"""The nodes of acceptance tests."""

from tests.acceptance.conftest import cluster, cluster_database_url, program

__all__ = ["cluster", "cluster_database_url", "program"]
