"""The frame of every command: Hydra composes the settings, a function gets them, a user's mistake is one line.

Hydra's own refusals run over several lines, end with status 1 and know no nearest name. Here each is said in one
line, as our own are, and ends with status 2. HYDRA_FULL_ERROR=1 shows Hydra's instead, with the trace.
"""

import argparse
import difflib
import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # Hydra's options; there is no public way to them
from hydra.core.utils import env_override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from deepfake.config import conf_dir
from deepfake.console import say_error
from deepfake.errors import UserError
from deepfake.signals import Stopped
from deepfake.untrusted import expect_safe_environment

_FULL_ERROR = "HYDRA_FULL_ERROR"  # "1": Hydra raises its errors; else it prints them in its way and exits


def command(
    config_name: str,
    sweeps: bool = False,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Callable[[DictConfig], float | None]], Callable[[], None]]:
    """Make a function of the composed settings the entry point of a command.

    An int that the function returns is the command's exit status; a float is the job's value for Hydra's sweeper. A
    user's mistake ends the process with one line and status 2, Ctrl-C with one line and status 130, any other error
    with its trace and status 1. In a sweep (-m) each of these, and a status that is not 0, ends the sweep: a function
    whose jobs shall outlive one another catches its errors itself, as `deepfake.sweep.job` does.

    Args:
        config_name: file of the command's settings in conf/, without its suffix.
        sweeps: whether the command takes -m; its function then sees to it that a job's failure is told.
        around: makes a context for all of it, jobs and what Hydra does before, between and after them.
    """

    def entry_point(function: Callable[[DictConfig], float | None]) -> Callable[[], None]:
        @functools.wraps(function)
        def job(cfg: DictConfig) -> float | None:
            with errors_ending_here():
                value = function(cfg)
            if isinstance(value, int) and value != 0:
                sys.exit(value)
            return value

        compose_and_run = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(job)

        @functools.wraps(function)
        def main() -> None:
            trace_wanted = os.environ.get(_FULL_ERROR) == "1"
            try:
                expect_safe_environment()
                _check_options(sweeps)
                with env_override({_FULL_ERROR: "1"}), around():
                    compose_and_run()
            except UserError as error:
                refuse(str(error))
            except Stopped as stopped:
                say_error(f"{stopped}. Run the same command again: it goes on from what is kept.")
                raise
            except KeyboardInterrupt:
                say_error("interrupted. Run the same command again: what is complete is kept.")
                sys.exit(130)
            except BrokenPipeError:  # whoever reads has seen enough, as `head` of --help: nothing to tell
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at the end
                sys.exit(128 + signal.SIGPIPE)
            except Exception as error:  # none of a job's: those have ended the process
                if trace_wanted:
                    raise
                refuse(_refusal(error, config_name))

        return main

    return entry_point


@contextmanager
def errors_ending_here() -> Iterator[None]:
    """For what Hydra calls: it makes a warning of a callback's error, and adds lines of its own to a job's."""
    try:
        yield
    except UserError as error:
        refuse(str(error))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def refuse(message: str) -> NoReturn:
    """End the process as a user's mistake does: one line, status 2."""
    say_error(message)
    sys.exit(2)


def _check_options(sweeps: bool) -> None:
    """Refuse what argparse would refuse below eight lines of usage.

    Raises:
        UserError: an unknown option, one without its value, or settings parted by an option.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; --hydra-help lists the options.") from error
    if options.multirun and not sweeps:
        raise UserError("-m is refused: expected one data set or list of runs at a time; only train sweeps.")
    if unknown:
        raise UserError(
            f"{unknown[0]} is refused: expected options such as -m first, then settings as NAME=VALUE without dashes."
        )


# ---------------------------------------------------------------------------------------- Hydra's errors in one line


def _refusal(error: Exception, config_name: str) -> str:
    """What was found, what was expected and what to do, from an error of Hydra's own, raised outside a job."""
    if isinstance(error, OverrideParseException):
        quotes = "; a VALUE with brackets, commas or quotes in it stands in quotes: 'NAME=\"a (b)\"'"
        return f"{error.override} is refused: expected NAME=VALUE{quotes if '=' in error.override else ''}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options or ())
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        return _unknown_setting(error.__cause__, config_name)
    told = _told(error)
    if several := re.match(r"Ambiguous value for argument '(.+)'", told):
        return f"{several[1]} is refused: several values are a sweep, which needs -m; a list is NAME=[A,B]."
    if added := re.match(r"(?:Multiple values for|Could not append .* already at) '?([\w./]*\w)", told):
        return f"+{added[1]} is refused: there is {added[1]} already; leave out the +."
    if type(error) is ValueError:  # a choice that is no text, as in model=3: Hydra does not say which
        for argument in sys.argv[1:]:
            group, _, choice = argument.partition("=")
            choices = _choices(group) if group.isidentifier() else []
            if choices and choice not in choices:
                return _unknown_choice(f"{group}/{choice}", choices)
    return told


def _unknown_choice(file: str, options: Sequence[str]) -> str:
    """Of a configuration that is not there: GROUP/CHOICE, or a name that stands in no group."""
    if "/" not in file:
        group, choice, found = "", file, f"configuration {file}"
    else:
        group, choice = file.rsplit("/", 1) if file.startswith("hydra/") else file.split("/", 1)
        found = f"{group}={choice}"
    expected = sorted({*options, *_choices(group)})
    near = difflib.get_close_matches(choice, expected, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{found} is refused: expected one of {', '.join(expected)}{hint}"


def _choices(group: str) -> list[str]:
    """What can be chosen in a group of conf/, folders below it included; "" is conf/ itself."""
    folder = Path(conf_dir(), group)
    files = folder.rglob("*.yaml") if group else folder.glob("*.yaml")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def _unknown_setting(error: ConfigAttributeError | ConfigKeyError, config_name: str) -> str:
    """Of a key that is not there, with the nearest at its place or below: `rotation` finds `augment.rotation`."""
    place, _, last = str(error.full_key).rpartition(".")
    known: dict[str, Any] = OmegaConf.to_container(error.parent_node, resolve=False)  # type: ignore[assignment]
    if not place:
        known.pop("hydra", None)
        known = dict.fromkeys(_groups(config_name)) | known
    nearest: dict[str, str] = {}  # last part of a name -> the name, the shallowest of several
    for name in sorted(_names(known, f"{place}." if place else ""), key=lambda name: name.count(".")):
        nearest.setdefault(name.rsplit(".", 1)[-1], name)
    near = difflib.get_close_matches(last, nearest, n=1)
    hint = f"did you mean {nearest[near[0]]}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}."
    return f"unknown setting {error.full_key}: {hint}"


def _names(settings: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")


def _groups(config_name: str) -> list[str]:
    """Groups that a command's settings choose from. One whose choice is null, as `experiment`, has no setting."""
    primary = OmegaConf.load(Path(conf_dir(), f"{config_name}.yaml"))
    entries = [entry for entry in OmegaConf.select(primary, "defaults", default=()) if OmegaConf.is_dict(entry)]
    return [group for entry in entries for group in entry if " " not in group]  # " ": override GROUP


def _told(error: BaseException) -> str:
    """Any other error in its own words: of Hydra's the first paragraph, and the cause."""
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key or 'settings'}: {str(error).splitlines()[0]}."
    if not isinstance(error, HydraException | OSError | ValueError):
        return f"Hydra ended with {error!r}; HYDRA_FULL_ERROR=1 shows where."
    told = str(error).split("\n\n")[0]
    if isinstance(error.__cause__, OmegaConfBaseException):
        told = f"{told}: {_told(error.__cause__)}" if told else _told(error.__cause__)
    return told
