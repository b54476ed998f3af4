"""The application of a project whose file has programs, and that has none of its own."""

from rebeam._spec import Supervisor

tree = Supervisor([])
