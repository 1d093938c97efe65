"""The register of methods: names, settings in the name, and errors that help."""

from __future__ import annotations

import pytest

from cacovid import methods
from cacovid.errors import InvalidInputError
from cacovid.methods import registry


@pytest.fixture(autouse=True)
def unchanged_register(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def test_every_name_gives_a_method_of_that_name():
    for name in methods.names():
        if registry._ENTRIES[name].takes_model:
            with pytest.raises(InvalidInputError, match="model"):
                methods.get(name)
            continue
        method = methods.get(name)
        assert isinstance(method, methods.Method)
        assert method.name == name
        assert name in repr(method)
        assert method.needs == frozenset(method.needs)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InvalidInputError) as caught:
        methods.get("unifrm")
    message = str(caught.value)
    assert all(name in message for name in methods.names())
    assert "did you mean 'uniform'" in message


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uniform:2", {}),
        ("attention:1:last:3", {}),
        ("attention", {"heads": 2}),
        ("attention:-1", {}),
        ("attention:one", {}),
        ("attention:1:first", {}),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings):
    with pytest.raises(InvalidInputError, match=name.partition(":")[0]):
        methods.get(name, **settings)


def test_settings_in_the_name_and_beside_it_are_the_same():
    by_name = methods.get("attention:2:question")
    beside = methods.get("attention", layer=2, queries="question")
    assert by_name.name == beside.name == "attention:2:question"
    assert by_name.needs == beside.needs == {"received_attention/2/question"}
    assert methods.get("attention:1:last").name == "attention"


def test_registering():
    methods.register("again", methods.UniformMethod)
    assert "again" in methods.names()
    with pytest.raises(InvalidInputError, match="registered already"):
        methods.register("again", methods.UniformMethod)
    methods.register("again", methods.RandomMethod, replace=True)
    assert isinstance(methods.get("again"), methods.RandomMethod)
    with pytest.raises(InvalidInputError, match="colon"):
        methods.register("a:b", methods.UniformMethod)


def test_a_method_inside_a_model_gets_it():
    given = []

    def factory(model, layer=2):
        given.append((model, layer))
        return methods.UniformMethod()

    methods.register("inside", factory, takes_model=True)
    with pytest.raises(InvalidInputError, match="model"):
        methods.get("inside")
    methods.get("inside:3", model="a model")
    assert given == [("a model", "3")]
