"""Which images there are and what they are labelled: known layouts of folders, or a table that names the files."""

import os
import re
from collections import Counter, deque
from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deepfake.console import log
from deepfake.data.catalog import COLUMNS as CATALOGUE
from deepfake.data.images import SUFFIXES
from deepfake.errors import UserError

COLUMNS = ["path", "label", "source", "group", "split", "parent"]

# Folder names that say a class by themselves, in the data sets of the field; capitals, "-" and spaces do not matter.
_REAL = """0 0_real real reals real_images real_faces training_real celeb_real youtube_real
    nature natural original originals original_sequences authentic genuine pristine bonafide bona_fide"""
_FAKE = """1 1_fake fake fakes fake_images fake_faces training_fake celeb_synthesis
    ai ai_generated ai_images generated generated_images synthetic synthetic_images synthesized artificial
    deepfake deepfakes deep_fake manipulated manipulated_sequences forged"""
CLASSES: dict[str, int] = {**dict.fromkeys(_REAL.split(), 0), **dict.fromkeys(_FAKE.split(), 1)}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

# What lies beside images and is none: lists, notes and what file managers leave.
_COMPANIONS = (
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".xml", ".yaml", ".yml",
    ".parquet", ".html", ".log", ".db", ".ini",
)  # fmt: skip

# What a folder can be. A folder of the study carries label and source in one name, 0-NAME or 1-NAME.
STUDY, CLASS, PART, NAME = "0-NAME", "class", "part", "name"
_STUDY_FOLDER = re.compile(r"[01][-_].", re.DOTALL)

# Every layout that is understood, as the roles of the folders from the top, with a picture of it. Commonest first.
LAYOUTS: dict[tuple[str, ...], str] = {
    (CLASS,): "real/*.png fake/*.png",
    (PART, CLASS): "train/real/*.png train/fake/*.png ...",
    (STUDY,): "0-ffhq/*.png 1-stylegan/*.png",
    (CLASS, NAME): "real/ffhq/*.png fake/stylegan/*.png",
    (NAME, CLASS): "stylegan/real/*.png stylegan/fake/*.png",
    (NAME, PART, CLASS): "stylegan/train/real/*.png stylegan/train/fake/*.png ...",
    (PART, CLASS, NAME): "train/real/ffhq/*.png train/fake/stylegan/*.png ...",
    (PART, NAME, CLASS): "train/stylegan/real/*.png train/stylegan/fake/*.png ...",
    (PART, STUDY): "train/0-ffhq/*.png train/1-stylegan/*.png ...",
    (STUDY, PART): "0-ffhq/train/*.png 1-stylegan/train/*.png ...",
    (CLASS, PART): "real/train/*.png fake/train/*.png ...",
    (CLASS, PART, NAME): "real/train/ffhq/*.png fake/train/stylegan/*.png ...",
    (CLASS, NAME, PART): "real/ffhq/train/*.png fake/stylegan/train/*.png ...",
    (NAME, CLASS, PART): "stylegan/real/train/*.png stylegan/fake/train/*.png ...",
}

_Roles = tuple[str, ...]
_Folder = tuple[str, ...]  # names from below root


class _Image(NamedTuple):
    folder: _Folder
    name: str
    label: int | None  # None outside labelled folders

    @property
    def path(self) -> str:
        return "/".join((*self.folder, self.name))


def find_images(root: Path, one_class: bool = False) -> pd.DataFrame:
    """Images of a folder in one of `LAYOUTS`, each file once, links followed.

    The outermost folder that has a label gives it; folders deeper than the layout are just folders. Images outside
    labelled folders are left out with a warning, and so are files inside that do not end as images do, but for lists
    and notes.

    Args:
        root: the folder that holds those folders.
        one_class: whether images of one class alone are enough, as to be judged they are.

    Returns:
        `COLUMNS`, one row a file, sorted by path: path (below root, with /, see `neutral_path`), label (0 real,
        1 generated), source (0-NAME or 1-NAME), group (""), split ("train", "val" or "test", "" if no folder says),
        parent ("").

    Raises:
        UserError: no such folder, no layout or more than one, a class without files, a folder that cannot be read, a
            name that is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is no folder: expected one that holds folders such as real and fake.")
    images, others = _walk(root)
    if others:
        log.warning(
            "left out: %d files that do not end in %s (%s), the first is %r",
            len(others), ", ".join(SUFFIXES), _suffixes(others), min(others),
        )  # fmt: skip
    labelled = [image for image in images if image.label is not None]
    unlabelled = [image for image in images if image.label is None]
    roles = _read_folders({image.folder for image in labelled})
    if not _is_one_layout(set(roles.values())):
        raise _no_layout(root, labelled or unlabelled)
    # Folders 0, 1, 2, ... are numbered, not labelled.
    if any(_class_folder(folder, roles[folder]).isdigit() for folder in roles) and any(
        name.isdigit() for image in unlabelled for name in image.folder
    ):
        raise _no_layout(root, images)
    if unlabelled:
        first = min(image.path for image in unlabelled)
        log.warning("left out: %d images outside labelled folders, the first is %r", len(unlabelled), first)
    facts = {folder: _source_and_split(folder, roles[folder]) for folder in roles}
    for image in labelled:
        _expect_unicode(image.path)
    rows = [(neutral_path(i.path), i.label, facts[i.folder][0], "", facts[i.folder][1], "") for i in labelled]
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("path", ignore_index=True)
    if not one_class:
        _expect_both_classes(
            table,
            f"data.root={root}",
            f"Put some into a folder named real, fake, 0-NAME or 1-NAME, as the others are (file names end in "
            f"{', '.join(SUFFIXES[:3])}, ...).",
        )
    return table


def read_manifest(root: Path, manifest: str, one_class: bool = False) -> pd.DataFrame:
    """Images named in a table below root, with at least the columns path and label.

    Args:
        root: what the paths are below.
        manifest: file below root, Parquet if its name ends in .parquet, otherwise CSV in UTF-8. Labels are 0, 1 or a
            word of `CLASSES`; splits a word of `SPLITS`, or missing in every row. In a catalogue, as a run writes
            it, files that it calls unreadable are left out with a warning.
        one_class: as in `find_images`.

    Returns:
        As `find_images`. A missing source is the first folder of the path, marked with the label, and so is a source
        that both labels have; a missing group is "". parent is the real source that a generated one was made from,
        where the table names one. Numbers come out as the text of the whole number they are.

    Raises:
        UserError: the file or a column is missing, a label or split is none, a path is empty, leads out of root, or
            has two labels or two splits, only some rows have a split, a class without rows, a parent that is no real
            source or not the only one.
    """
    file = root / manifest
    kind = "Parquet" if file.suffix.lower() == ".parquet" else "CSV"
    if not os.path.isfile(file):  # False also for what no file can be called
        raise UserError(f"data.manifest={manifest}: expected a {kind} file below {root}, found none there.")
    table = _read_parquet(file) if kind == "Parquet" else _read_csv(file)
    for column in ("path", "label"):
        if column not in table:
            raise UserError(
                f"{file}: expected a column {column}, found {', '.join(table.columns)}. Add it to the file."
            )
    if set(CATALOGUE) <= set(table.columns):
        table = _readable(table, file)
    table = table.reindex(columns=COLUMNS, fill_value="")
    labels = pd.Series([CLASSES.get(_plain(text), -1) for text in table["label"]], table.index, dtype=int)
    for _, row in table[labels < 0].head(1).iterrows():
        raise UserError(
            f"{file}: expected labels 0 (real) or 1 (generated), found {row['label']!r} for {row['path']!r}."
        )
    splits = pd.Series([SPLITS.get(_plain(text), "") for text in table["split"]], table.index, dtype=str)
    for _, row in table[(splits == "") & (table["split"] != "")].head(1).iterrows():
        raise UserError(
            f"{file}: expected a split of train, val or test, found {row['split']!r} for {row['path']!r}."
        )
    if splits.eq("").any() and splits.ne("").any():
        path = table.loc[splits.eq(""), "path"].iloc[0]
        raise UserError(
            f"{file}: expected a split in every row or in none, found {int(splits.eq('').sum())} of {len(table)} "
            f"without, the first for {path!r}. Fill them in, or remove the column split."
        )
    paths = _paths_inside(root, file, table["path"])
    table = table.assign(path=paths, label=labels, split=splits)
    for path in table.loc[table.groupby("path")["label"].transform("nunique") > 1, "path"].head(1):
        raise UserError(f"{file}: {path!r} is labelled both real and generated. Remove the wrong row.")
    for path in table.loc[table.groupby("path")["split"].transform("nunique") > 1, "path"].head(1):
        parts = " and ".join(sorted(set(table.loc[table["path"] == path, "split"])))
        raise UserError(f"{file}: expected one split for {path!r}, found {parts}. Remove the wrong row.")
    default = [_marked(_first_folder(path), label) for path, label in zip(paths, table["label"], strict=True)]
    table["source"] = _one_class_each(table["source"].where(table["source"] != "", default), table["label"])
    table["parent"] = _parents(table, file)
    table = table.drop_duplicates("path").sort_values("path", ignore_index=True)
    if not one_class:
        _expect_both_classes(table, str(file), "Add rows of that class to the file.")
    return table


def neutral_path(path: str) -> str:
    """The path with "./" in front where a spreadsheet would take it for a formula (OWASP, CSV injection).

    Args:
        path: relative, not empty.

    Returns:
        A path to the same file, which does not begin with one of = + - @ tab CR.
    """
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


# -------------------------------------------------------------------------------------------------- walking folders


class _Place(NamedTuple):
    folder: _Folder
    real: str  # where that is, links resolved
    label: int | None
    trail: tuple[str, ...]  # resolved folders from which links led here


def _walk(root: Path) -> tuple[list[_Image], list[str]]:
    """Every image below root, hidden names skipped, each file once a label (where they differ the scan refuses).

    Also the paths of the files in labelled folders that are neither images nor what lies beside them.
    """
    images: dict[tuple[int | None, str], _Image] = {}  # by label and resolved file
    others: dict[str, str] = {}  # path by resolved file

    def note(place: _Place, name: str, real: str) -> None:
        file = _Image(place.folder, name, place.label)
        if _is_image(name):
            images.setdefault((place.label, real), file)
        elif place.label is not None and _suffix(name) not in _COMPANIONS:
            others.setdefault(real, file.path)

    seen: set[tuple[int | None, str]] = set()
    folders = [_Place((), os.path.realpath(root), None, ())]
    links: deque[tuple[_Place, str]] = deque()
    while folders or links:
        if not folders:  # links last: a file that is there itself keeps its own name
            place, name = links.popleft()
            real = os.path.realpath(os.path.join(place.real, name))  # unlike Path.resolve, no error for a loop
            if not os.path.isdir(real):
                note(place, name, real)
            elif not _leads_up(real, place):
                folders.append(_enter(place, name)._replace(real=real, trail=(*place.trail, place.real)))
            continue
        place = folders.pop()
        if (place.label, place.real) in seen:
            continue
        seen.add((place.label, place.real))
        for entry in _entries(place.real):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                links.append((place, entry.name))
            elif entry.is_dir():
                folders.append(_enter(place, entry.name))
            else:
                note(place, entry.name, os.path.join(place.real, entry.name))
    labelled = {real for label, real in images if label is not None}
    found = [image for (label, real), image in images.items() if label is not None or real not in labelled]
    # Stores of files give them names without a suffix, and links to them names that have one.
    return found, [path for real, path in others.items() if real not in labelled]


def _enter(place: _Place, name: str) -> _Place:
    label = _label(name) if place.label is None else place.label
    return _Place((*place.folder, name), os.path.join(place.real, name), label, place.trail)


def _leads_up(real: str, place: _Place) -> bool:
    """A link back to where we were, or up the tree and so into other folders."""
    return any(os.path.commonpath((real, below)) == real for below in (place.real, *place.trail))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"expected a folder that can be read, found {folder!r}: {error.strerror}. Change its rights or move it."
        ) from error


def _is_image(name: str) -> bool:
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _suffixes(names: Iterable[str]) -> str:
    """The commonest ends of file names and how many have each."""
    counts = sorted(Counter(map(_suffix, names)).items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {repr(suffix) if suffix else 'without a suffix'}" for suffix, count in counts[:5]]
    return ", ".join([*shown, "..."] if len(counts) > 5 else shown)


# -------------------------------------------------------------------------------------------------- reading folders


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _label(name: str) -> int | None:
    if (label := CLASSES.get(_plain(name))) is not None:
        return label
    return int(name[0]) if _STUDY_FOLDER.match(name) else None


def _read_folders(folders: Iterable[_Folder]) -> dict[_Folder, _Roles]:
    """The layout of each folder of images. A name such as 0-real is a class, but a 0-NAME where others are."""
    roles = {folder: _layout(_roles(folder)) for folder in folders}
    if {CLASS, STUDY} <= {role for found in roles.values() for role in found}:
        roles = {folder: _layout(_roles(folder, study=True)) for folder in roles}
    return roles


def _roles(folder: _Folder, study: bool = False) -> _Roles:
    """What each folder of a path is. Below a label, a folder of the other class is a class too: no layout has both.

    Args:
        folder: names from below root.
        study: names such as 0-real are 0-NAME.
    """
    roles = []
    label = None
    for name in folder:
        word = _plain(name)
        role = NAME
        if word in SPLITS:
            role = PART
        elif label is None:
            label = _label(name)
            if label is not None:
                role = STUDY if _STUDY_FOLDER.match(name) and (study or word not in CLASSES) else CLASS
        elif CLASSES.get(word, label) != label and not word.isdigit():  # 0, 1, ... below a class only count
            role = CLASS
        roles.append(role)
    return tuple(roles)


def _layout(roles: _Roles) -> _Roles:
    """Without the folders that are deeper than any layout."""
    at = next((n for n, role in enumerate(roles, start=1) if role in (STUDY, CLASS)), None)
    if at is None:
        return roles
    above, below = roles[:at], roles[at:]
    if CLASS in below:
        return roles  # two labels on one path
    if above[-1] == STUDY:
        return (*above, *takewhile(lambda role: role == PART, below))
    return (*above, *(below[:1] if below[:2] == (NAME, NAME) else below[:2]))


def _is_one_layout(found: set[_Roles]) -> bool:
    """Known, and the same for all, but that there may be images beside the folders of generators below a class."""
    flat = {tuple(r for n, r in enumerate(roles) if r != NAME or CLASS not in roles[:n]) for roles in found}
    return found <= LAYOUTS.keys() and len(flat) == 1 and len(found - flat) <= 1


def _class_folder(folder: _Folder, roles: _Roles) -> str:
    return dict(zip(roles, folder, strict=False)).get(CLASS, "")


def _source_and_split(folder: _Folder, roles: _Roles) -> tuple[str, str]:
    names = dict(zip(roles, folder, strict=False))  # of one layout, so each role once
    split = SPLITS[_plain(names[PART])] if PART in names else ""
    if STUDY in names:
        return names[STUDY], split
    return _marked(names.get(NAME, names[CLASS]), CLASSES[_plain(names[CLASS])]), split


def _no_layout(root: Path, images: list[_Image]) -> UserError:
    """What is there instead of one layout, and which layouts are nearest to it."""
    roles = {folder: _layout(_roles(folder)) for folder in {image.folder for image in images}}
    counts = Counter(roles[image.folder] for image in images)
    found = []
    for shape, count in counts.most_common(3):
        example = min(image.path for image in images if roles[image.folder] == shape)
        found.append(f"{'/'.join(shape) or 'no folder'} ({count}, such as {example!r})")
    if len(counts) > 3:
        found.append("others")
    nearest = sorted(LAYOUTS, key=lambda layout: -sum(n * _likeness(layout, shape) for shape, n in counts.items()))
    return UserError(
        f"data.root={root}: expected images in one known layout of folders, found "
        f"{', '.join(found) or 'no image (file names end in ' + ', '.join(SUFFIXES[:3]) + ', ...)'}. "
        f"The nearest layouts are: {', '.join(repr(LAYOUTS[layout]) for layout in nearest[:3])}. "
        f"Rename or move folders, or name a CSV or Parquet file with the columns path and label as data.manifest."
    )


def _likeness(layout: _Roles, found: _Roles) -> float:
    """In [0, 1], 1 for the same roles. Where no folder has a label, one of them is thought to be renamed."""
    guesses = [found]
    if STUDY not in found and CLASS not in found:
        guesses += [
            (*found[:n], label, *found[n + 1 :])
            for n, role in enumerate(found)
            if role == NAME
            for label in (CLASS, STUDY)
        ]
    return max(SequenceMatcher(None, layout, guess).ratio() for guess in guesses)


# --------------------------------------------------------------------------------------------------------- manifest


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, not UTF-8, rows of unequal length
        raise _unreadable(file, "CSV file in UTF-8", error) from error


def _read_parquet(file: Path) -> pd.DataFrame:
    try:
        # By its metadata, a column may be an index.
        table = pd.read_parquet(
            file,
            engine="pyarrow",
            partitioning=None,  # a folder named a=b above it is no column
            dtype_backend="numpy_nullable",
            to_pandas_kwargs={"ignore_metadata": True},
        )
        known = [column for column in COLUMNS if column in table]
        for column in known:
            table[column] = table[column].map(_whole, na_action="ignore").astype(str).fillna("")
    except (ValueError, NotImplementedError, OSError) as error:
        raise _unreadable(file, "Parquet file", error) from error
    return table


def _readable(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """A catalogue, without the files that it calls unreadable and without the marks that a CSV of it has."""
    unreadable = table["status"].eq("unreadable").fillna(False).astype(bool)
    if unreadable.any():
        first = table.loc[unreadable, "path"].iloc[0]
        log.warning("left out: %d files that %s calls unreadable, the first is %r", unreadable.sum(), file, first)
    if file.suffix.lower() == ".parquet":
        return table[~unreadable]
    texts = {column: table[column].str.removeprefix("'") for column in ("path", "source", "group", "split", "parent")}
    return table.assign(**texts)[~unreadable]


def _whole(value: object) -> object:
    """7 for 7.0: whole numbers beside missing ones are often stored as floating-point numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unreadable(file: Path, expected: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).removesuffix(".")
    return UserError(f"{file}: expected a {expected}, found one that cannot be read: {reason}.")


def _paths_inside(root: Path, file: Path, paths: Iterable[str]) -> list[str]:
    """Paths as `find_images` writes them; refuses those that name nothing or lead out of root, by a link too."""
    inside = os.path.realpath(root)
    folders: dict[str, str] = {}  # resolved once each
    found = []
    for path in paths:
        if not path or "\0" in path:
            raise UserError(f"{file}: expected the path of an image in every row, found {path!r}.")
        below = os.path.relpath(os.path.join(root, path), root)
        folder, name = os.path.split(below)
        if folder not in folders:
            folders[folder] = os.path.realpath(os.path.join(root, folder))
        real = os.path.join(folders[folder], name)
        if name == ".." or os.path.islink(real):
            real = os.path.realpath(real)
        if not Path(real).is_relative_to(inside) or below.split(os.sep)[0] == "..":
            raise UserError(f"{file}: {below!r} leads out of {root}. Paths must stay below data.root.")
        found.append(neutral_path(Path(below).as_posix()))
    return found


def _first_folder(path: str) -> str:
    parts = Path(path).parts
    return parts[0] if len(parts) > 1 else "images"


# -------------------------------------------------------------------------------------------------------------- both


def _marked(name: str, label: int) -> str:
    """A source says its class, so that one name in both classes is two sources."""
    return name if _STUDY_FOLDER.match(name) and int(name[0]) == label else f"{label}-{name}"


def _one_class_each(source: pd.Series, label: pd.Series) -> pd.Series:
    """Sources, marked where both labels have one: what is counted by source must not mix the classes."""
    # Again where a mark made the name of another source.
    while (both := label.groupby(source).transform("nunique") > 1).any():
        marked = [_marked(name, of) for name, of in zip(source, label, strict=True)]
        source = source.where(~both, marked)
    return source


def _parents(table: pd.DataFrame, file: Path) -> pd.Series:
    """Each generated source's real one, under the name that this has in the table."""
    named = table[table["parent"] != ""]
    for row in named[named["label"] == 0].head(1).itertuples():
        raise UserError(
            f"{file}: expected a parent for generated images alone, found {row.parent!r} for {row.path!r}."
        )
    for source, parents in named.groupby("source")["parent"]:
        if len(set(parents)) > 1:
            raise UserError(
                f"{file}: expected one parent for the source {source!r}, found {', '.join(sorted(set(parents)))}."
            )
    reals = set(table.loc[table["label"] == 0, "source"])
    names = {name: name if name in reals else _marked(name, 0) for name in set(named["parent"])}
    for name in sorted(name for name, real in names.items() if real not in reals):
        raise UserError(
            f"{file}: expected real sources as parents ({', '.join(sorted(reals)) or 'none'}), found {name!r}."
        )
    return table["parent"].map({"": ""} | names)


def _expect_unicode(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected file names in UTF-8, found {path!r}. Rename that file.") from error


def _expect_both_classes(table: pd.DataFrame, where: str, fix: str) -> None:
    for label, kind in ((0, "real"), (1, "generated")):
        if not (table["label"] == label).any():
            raise UserError(
                f"{where}: expected images of both classes, found {len(table)} in all and none that is {kind}. {fix}"
            )
