"""How hard Hypothesis tries: 100 cases a property, or with --hypothesis-profile=fuzz at least a thousand."""

from hypothesis import HealthCheck, settings

# A loaded machine must not turn slowness into a failure.
patient = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None, print_blob=True
)
settings.register_profile("quick", patient, max_examples=100)
settings.register_profile("fuzz", patient, max_examples=1000)
settings.load_profile("quick")
