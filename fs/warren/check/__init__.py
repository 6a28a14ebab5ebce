"""Public conformance suites: what every implementation of an interface must do. For tests only."""
