"""Implementations that register themselves: adding one needs a module and no change to a list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Kind = TypeVar("Kind")
Implementation = TypeVar("Implementation")


class Registry(Generic[Kind]):
    """The classes of a package, each under the class of its config section."""

    def __init__(self, package: str) -> None:
        """`package` holds the modules whose classes register themselves; they are imported on the first use."""
        self._package = package
        self._classes: dict[type, type[Kind]] = {}
        self._is_complete = False

    def register(self, section: type) -> Callable[[type[Implementation]], type[Implementation]]:
        """Decorate the class that implements a config section."""

        def keep(implementation: type[Implementation]) -> type[Implementation]:
            if section in self._classes:
                raise ValueError(f"{section.__name__} is implemented by {self._classes[section].__name__} already")
            self._classes[section] = implementation  # type: ignore[assignment]  # a subclass of Kind
            return implementation

        return keep

    def __getitem__(self, section: type) -> type[Kind]:
        """The class that implements a config section.

        Raises:
            KeyError: no module of the package implements it.
        """
        self._load()
        return self._classes[section]

    def __iter__(self) -> Iterator[type]:
        """The sections that are implemented."""
        self._load()
        return iter(self._classes)

    def _load(self) -> None:
        if not self._is_complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._is_complete = True
