from hypothesis import settings

# deterministic examples, no time limit per example: CI machines are slow and shared
settings.register_profile('ci', deadline=None, derandomize=True, max_examples=40)
settings.load_profile('ci')

LONGEST = 'test_site', 'test_kernels', 'test_splitting', 'test_runs', 'test_resume'


def pytest_collection_modifyitems(items):
    "The longest files first, so that two workers end at about the same time"
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
