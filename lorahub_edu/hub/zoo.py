"""The zoo: LoRA modules of one base model, each trained on one small task, with a card that says what it can do.

A module is a folder in PEFT's layout plus card.json. Modules from the shipped zoo, from any folder, and from the hub
load through the same function.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub_edu.errors import CourseError, near_matches
from lorahub_edu.files import assets, save
from lorahub_edu.lora import CONFIG_FILE, WEIGHTS_FILE
from lorahub_edu.results import Table

if TYPE_CHECKING:
    from lorahub_edu.lora.adapter_files import AdapterFile

# torch is imported where a module is read, so that a mistyped name is answered at once.

CARD_FILE = "card.json"
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "zoo"
PUBLISHED = Path(__file__).resolve().parent.parent / "data" / "lorahub_modules.json"


@dataclass(frozen=True)
class Card:
    """What a module was trained on, and what that did; exact match is a share from 0 to 1, losses are in nats a token.

    `strict` counts an answer only if the model also stops after it; `answer_only` whatever follows. The scores are on
    held-out items with the task's first instruction.
    """

    task: str
    instruction: str
    base_model: str
    base_model_sha256: str | None
    training_items: int
    test_items: int
    init_seed: int
    data_seed: int
    rank: int
    alpha: float
    steps: int
    learning_rate: float
    batch_size: int
    loss_before: float
    loss_after: float
    strict_before: float
    strict_after: float
    answer_only_before: float
    answer_only_after: float
    seconds: float
    weights_sha256: str
    device: str
    versions: dict[str, str]
    date: str


def own_zoo() -> Path:
    """Where modules that this user trained lie: the course's cache."""
    return assets.home() / "zoo"


def names(folder: str | Path = SHIPPED) -> list[str]:
    """Names of the modules in a folder of modules, in alphabetical order."""
    return sorted(path.parent.name for path in Path(folder).glob(f"*/{CONFIG_FILE}"))


def headers(folder: str | Path = SHIPPED) -> dict[str, tuple[str, str | None]]:
    """Each module's instruction ("" without a card) and its base's hash, by name; no tensor is read.

    Raises CourseError: a card or the header of a file can't be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    found = names(folder)
    with ThreadPoolExecutor() as threads:  # thousands of small files: the disk is asked for several at a time
        return dict(zip(found, threads.map(_header, [Path(folder) / name for name in found]), strict=True))


def _header(module: Path) -> tuple[str, str | None]:
    from safetensors import SafetensorError, safe_open

    instruction, base = "", None
    try:
        if (module / CARD_FILE).is_file():
            instruction = json.loads((module / CARD_FILE).read_text(encoding="utf-8"))["instruction"]
        if (module / WEIGHTS_FILE).is_file():
            with safe_open(module / WEIGHTS_FILE, framework="numpy") as opened:
                base = (opened.metadata() or {}).get("base_model_sha256")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CourseError(f"The module {module} can't be read ({error}). Train or copy it again.") from error
    return instruction, base


def card(name: str, folder: str | Path = SHIPPED) -> Card:
    """The card of a module of a zoo. Raises CourseError: there is no such module, or its card can't be read."""
    path = _module_folder(name, Path(folder)) / CARD_FILE
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CourseError(f"{path} is no card of a module ({error}). Train the module again.") from error


def instruction_of(module: AdapterFile) -> str:
    """The instruction on a module's card; "" where it has none."""
    known = (module.path / CARD_FILE).is_file()
    return card(module.path.name, module.path.parent).instruction if known else ""


def _module_folder(name: str, folder: Path) -> Path:
    if not (folder / name / CONFIG_FILE).is_file():
        raise CourseError(f"There is no module {name!r} in {folder}. {near_matches(name, names(folder))}")
    return folder / name


def load(sources: Sequence[str | Path] | None = None, folder: str | Path = SHIPPED) -> list[AdapterFile]:
    """Modules by name, by folder, or by their name on the hub.

    A source is the name of a module in `folder`, a folder in PEFT's layout, a folder of such folders, or "owner/name"
    on the hub. None takes every module in `folder`.
    Raises CourseError: a module is not found, is cut short, or is not LoRA in PEFT's layout.
    """
    from lorahub_edu.lora.adapter_files import read_adapter

    return [read_adapter(path if isinstance(path, Path) else from_hub(path)) for path in find(sources, folder)]


def find(sources: Sequence[str | Path] | None = None, folder: str | Path = SHIPPED) -> list[Path | str]:
    """The folder of each module that `load` reads, or its name on the hub; nothing is read or fetched."""
    folders: list[Path | str] = []
    for source in names(folder) if sources is None else sources:
        path = Path(source)
        if is_on_hub(source, folder):
            folders.append(str(source))
        elif (Path(folder) / source / CONFIG_FILE).is_file() or not path.is_dir():
            folders.append(_module_folder(str(source), Path(folder)))
        elif (path / CONFIG_FILE).is_file():
            folders.append(path)
        elif names(path) or any(path.glob("adapter_model.*")):
            folders += [path / name for name in names(path)] or [path]
        else:
            raise CourseError(f"{path} holds no adapter: {CONFIG_FILE} is missing. Give the folder that holds one.")
    if not folders:
        raise CourseError(f"There is no module in {folder}: train some with lorahub-edu zoo train.")
    return folders


def is_on_hub(source: str | Path, folder: str | Path = SHIPPED) -> bool:
    """Whether `load` would look for this source on the hub: "owner/name" that is no folder here."""
    text = str(source)
    here = Path(text).is_dir() or (Path(folder) / text / CONFIG_FILE).is_file()
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not here


def hub_folder(repo: str) -> Path:
    """Where a module of the hub lies in the course's cache, once `from_hub` has fetched it."""
    return own_zoo() / "hub" / repo.replace("/", "--")


def from_hub(repo: str) -> Path:
    """A module that is published on the hub as "owner/name", in a local folder.

    Old modules (LoRAHub's own among them) are published as a pickled adapter_model.bin, which is kept as safetensors.
    Raises CourseError where it can't be fetched, or holds no LoRA module.
    """
    from huggingface_hub import snapshot_download
    from safetensors.torch import save_file

    from lorahub_edu.lora import adapter_files

    target = hub_folder(repo)
    if (target / WEIGHTS_FILE).is_file():
        return target
    try:
        snapshot = Path(snapshot_download(repo, allow_patterns=["adapter_config.json", "adapter_model.*"]))
        settings = (snapshot / CONFIG_FILE).read_text(encoding="utf-8")
        tensors, metadata = adapter_files.read_tensors(adapter_files.find_weights(snapshot))
    except Exception as error:  # the hub's library raises many kinds
        raise CourseError(
            f"Can't get the module {repo!r} from the hub: {type(error).__name__}: {str(error)[:200]}. Check the name "
            f"and the network, or give a folder that holds the module."
        ) from error
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG_FILE).write_text(settings, encoding="utf-8")
    with save.replacing(target / WEIGHTS_FILE) as unfinished:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished, metadata or None)
    return target


def published_modules() -> tuple[str, ...]:
    """Hub names, in alphabetical order, of the modules that the paper draws from; their base is flan-t5-large.

    Source: Huang et al. 2023, "LoraHub", section 4.1 (about 200 tasks of FLAN); claims H3 and H6.
    """
    return tuple(json.loads(PUBLISHED.read_text(encoding="utf-8"))["modules"])


def verify(folder: str | Path = SHIPPED) -> dict[str, list[str]]:
    """The problems of each module of a zoo, by name; a sound module has none.

    A module must be readable, finite, and of the same shape as the others. Its card must name its weights and its base.
    """
    if not names(folder):
        return {}
    import torch

    from lorahub_edu.lora.adapter_files import read_adapter

    found: dict[str, list[str]] = {}
    shapes: dict[str, list] = {}
    for name in names(folder):
        problems = found[name] = []
        try:
            file, described = read_adapter(Path(folder) / name), card(name, folder)
            if sha256_of(Path(folder) / name / WEIGHTS_FILE) != described.weights_sha256:
                problems.append("the weights are not those that the card describes")
            if file.base_model_sha256 != described.base_model_sha256:
                problems.append("weights and card name different base models")
            shapes[name] = [(site, A.shape, B.shape) for site, (A, B) in file.weights.items()]
            if shapes[name] != next(iter(shapes.values())):
                problems.append(f"its layers or ranks differ from those of {next(iter(shapes))}")
            if any(not torch.isfinite(tensor).all() for pair in file.weights.values() for tensor in pair):
                problems.append("it holds NaN or infinite values")
        except CourseError as error:
            problems.append(str(error))
    return found


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def overview(folder: str | Path = SHIPPED) -> Table:
    """Every module of a zoo with its instruction and scores before and after training. Raises CourseError for none."""
    if not names(folder):
        raise CourseError(f"There is no module in {folder}: train some with lorahub-edu zoo train --folder {folder}.")
    lines = []
    for name in names(folder):
        cells = ("no card", "–", "–", "–")  # another tool's module
        if (Path(folder) / name / CARD_FILE).is_file():
            c = card(name, folder)
            strict = f"{c.strict_before:.0%} → {c.strict_after:.0%}"
            answer_only = f"{c.answer_only_before:.0%} → {c.answer_only_after:.0%}"
            cells = (c.instruction, strict, answer_only, f"{c.loss_before:.2f} → {c.loss_after:.2f}")
        lines.append((name, *cells))
    return Table(("module", "instruction", "strict exact match", "answer only", "loss"), tuple(lines))


def card_table(name: str, folder: str | Path = SHIPPED) -> Table:
    """One module's card as a table."""
    fields = asdict(card(name, folder))
    fields["versions"] = ", ".join(f"{library} {version}" for library, version in fields["versions"].items())
    return Table((name, ""), tuple((key.replace("_", " "), str(value)) for key, value in fields.items()))


def open_source(source: str | Path, folder: str | Path = SHIPPED) -> AdapterFile | Path:
    """One adapter that was read, or the folder of a fine-tuned model in safetensors.

    `source` is a module of the zoo in `folder`, the folder or file of an adapter in PEFT's layout, "owner/name" of an
    adapter on the hub, or the folder of such a model. Raises CourseError where there is none, or several.
    """
    found = find_source(source, folder)
    if isinstance(found, Path) and _is_tuned_model(found):
        return found
    from lorahub_edu.lora.adapter_files import read_adapter

    return read_adapter(found if isinstance(found, Path) else from_hub(found))


def find_source(source: str | Path, folder: str | Path = SHIPPED) -> Path | str:
    """Where `open_source` reads, or a name on the hub; nothing is read or fetched. Raises CourseError as it does."""
    path = Path(source)
    if path.is_file() or _is_tuned_model(path):
        return path
    (found, *more) = find([source], folder)
    if more:
        shown = ", ".join(Path(module).name for module in [found, *more][:3])
        raise CourseError(f"{source} holds several modules ({shown}, …). Give the folder of one.")
    return found


def _is_tuned_model(folder: Path) -> bool:
    return any(folder.glob("model.safetensors*")) and not (folder / CONFIG_FILE).is_file()
