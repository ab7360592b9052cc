"""Property tests have no deadline: on a machine that others share, the time of one example says nothing."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
