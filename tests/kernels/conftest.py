import pytest

from fp4scope.kernels import using

from .reference import HERE


@pytest.fixture(scope="module", params=HERE)
def each_backend(request):
    """Every test of a module that uses this runs with one backend after the other."""
    with using(request.param):
        yield request.param
