from hypothesis import settings

# deterministic examples, no time limit per example: CI machines are slow and shared
settings.register_profile('ci', deadline=None, derandomize=True, max_examples=40)
settings.load_profile('ci')
