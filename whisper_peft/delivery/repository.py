"""A repository on the Hub: what is in it, a commit to it, and what goes wrong as one clear line.

Login is huggingface_hub's; a token is never printed or stored here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.delivery.card import is_untouched
from whisper_peft.errors import UserError
from whisper_peft.model.identity import WEIGHTS, WEIGHTS_INDEX

CARD = "README.md"
LOGIN = "log in with 'hf auth login', or set HF_TOKEN, to a token that may write"


class Unreachable(UserError):
    """The Hub does not answer; later it may."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its name there, and where or what it is."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Found:
    """What is in a repository already."""

    exists: bool
    names: frozenset[str] = frozenset()

    @property
    def kind(self) -> str | None:
        """adapter or model; None where there are no weights."""
        if "adapter_config.json" in self.names:
            return "adapter"
        return "model" if any(name.endswith((".safetensors", ".bin")) or name == "config.json" for name in self.names
                              if "/" not in name) else None  # fmt: skip


def check_repo_name(repo: str, what: str = "REPO") -> None:
    """Refuses what cannot be the name of a repository.

    Raises:
        UserError: not owner/name, or letters that the Hub does not take.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1:
        raise UserError(f"{what} {repo}: not the name of a repository; write owner/name.")
    try:
        validate_repo_id(repo if repo.isascii() else "")  # huggingface_hub 0.x takes letters of any script
    except HFValidationError:
        raise UserError(
            f"{what} {repo}: not the name of a repository; letters, digits, '-', '_' and '.', at most 96 in all, no "
            "'--' or '..'."
        ) from None


def check_login(repo: str) -> None:
    """Refuses to begin without a login that may write.

    Raises:
        UserError: there is no token, one that the Hub refuses, or one that may only read; Unreachable.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(f"{repo}: no login for the Hub; {LOGIN}.")
    with explained(repo):
        who = HfApi().whoami()
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"{repo}: the login may only read; {LOGIN}.")


def look(repo: str, kind: str) -> Found:
    """What a repository holds, which must be of the kind that is to be published, or nothing.

    Args:
        repo: owner/name.
        kind: adapter or model.

    Raises:
        UserError: it holds weights of the other kind; Unreachable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(repo):
        try:
            found = Found(True, frozenset(HfApi().list_repo_files(repo)))
        except RepositoryNotFoundError:
            return Found(False)
    if found.kind not in (None, kind):
        name = {"adapter": "an adapter", "model": "a stand-alone model"}
        raise UserError(
            f"{repo}: holds {name[found.kind]}, and this is {name[kind]}; the one is never put over the other: name "
            "another REPO."
        )
    return found


def check_base(repo: str, sha256: str | None) -> None:
    """Makes sure that the base an adapter is to name is on the Hub, with the weights that it was trained on.

    Args:
        repo: of the base.
        sha256: of its weights, as the adapter knows them; None: not known. Weights in one file are compared.

    Raises:
        UserError: no such repository, or other weights.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(repo):
        try:
            weights = HfApi().get_paths_info(repo, ["model.safetensors"])
        except RepositoryNotFoundError:
            raise UserError(f"--base {repo}: not on the Hub; an adapter can be loaded only with its base.") from None
    found = weights[0].lfs.sha256 if weights and weights[0].lfs else None
    if sha256 and found and found != sha256:
        raise UserError(
            f"--base {repo}: not the weights this adapter was trained on (another SHA-256); name the right one, or "
            "merge the adapter and publish the merged model."
        )


def send(repo: str, files: Sequence[HubFile], found: Found, *, private: bool, message: str) -> tuple[str, str, bool]:
    """Adds files to a repository as one commit; whatever else is in it stays.

    A card that somebody has edited stays, too.

    Args:
        repo: owner/name; made if it is not there.
        files: what to add.
        found: what `look` says.
        private: whether a new repository is.
        message: of the commit.

    Returns:
        URL of the repository, the commit, and whether an edited card was left as it was.

    Raises:
        UserError: no permission; weights there that would be loaded instead of these; Unreachable.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    if WEIGHTS in found.names and WEIGHTS_INDEX in {file.name for file in files}:
        raise UserError(f"{repo}: holds a {WEIGHTS} that would be loaded instead of these parts; name another REPO.")
    with explained(repo):
        edited = CARD in found.names and _is_edited(repo)
        if not found.exists:
            api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.create_commit(
            repo,
            [
                CommitOperationAdd(file.name, file.content if isinstance(file.content, bytes) else str(file.content))
                for file in files
                if not (edited and file.name == CARD)
            ],
            commit_message=message,
        )
    return f"{api.endpoint}/{repo}", commit.oid, edited


def _is_edited(repo: str) -> bool:
    from huggingface_hub import hf_hub_download

    card = Path(hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
    return bool(card.strip()) and not is_untouched(card)


@contextlib.contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turns what the client raises into one line: where, what, the remedy."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"{repo}: no login for the Hub; {LOGIN}.") from None
    except OfflineModeIsEnabled:
        raise Unreachable(f"{repo}: HF_HUB_OFFLINE is set; take it away to reach the Hub.") from None
    except _network_errors() as error:
        raise _clear(repo, error) from None
    except RuntimeError as error:  # an upload that failed in a thread of the client's
        if not isinstance(error.__cause__, _network_errors()):
            raise
        raise _clear(repo, error.__cause__) from None


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the client raises, on httpx as on requests (huggingface_hub 0.x)."""
    from huggingface_hub.errors import HfHubHTTPError

    library = next(one for one in HfHubHTTPError.__mro__[1:] if one.__name__ == "HTTPError")
    above = library.__mro__[1]  # requests: RequestException, of which a lost connection is another kind
    return (above if above is not Exception else library, ConnectionError, TimeoutError)


def _clear(repo: str, error: BaseException) -> UserError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return UserError(f"{repo}: the Hub does not accept the login; {LOGIN}.")
    if status == 403:
        return UserError(f"{repo}: this login may not write there; name a REPO of your own, or {LOGIN}.")
    if status is None:
        return Unreachable(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); check the network, then again."
        )
    said = _without_token(" ".join((getattr(error, "server_message", None) or "no reason given").split())[:200])
    kind = Unreachable if status >= 500 or status == 429 else UserError
    return kind(f"{repo}: the Hub answers {status} ({said}); try again later.")


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "…") if token else text
