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
from whisper_peft.model.adapter_configs import ADAPTER_CONFIG
from whisper_peft.model.identity import WEIGHTS, WEIGHTS_INDEX
from whisper_peft.runtimes.exports import EXPORT

CARD = "README.md"
LOGIN = "log in with 'hf auth login', or set HF_TOKEN, to a token that may write"
KIND_IN_WORDS = {"adapter": "an adapter", "model": "a stand-alone model", "export": "an export for another runtime"}


class Unreachable(UserError):
    """The Hub does not answer; later it may."""


@dataclass(frozen=True)
class RepoFile:
    """A file that goes into a repository.

    Attributes:
        name: Its name in the repository.
        content: Its bytes, or the file on this machine that has them.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Its size in bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size


@dataclass(frozen=True)
class RepoState:
    """The state of a repository before a commit.

    Attributes:
        exists: Whether there is such a repository.
        names: Names of the files in it.
    """

    exists: bool
    names: frozenset[str] = frozenset()

    @property
    def kind(self) -> str | None:
        """Either adapter, model or export; None where there are no weights.

        Example:
            >>> RepoState(True, frozenset({"model.safetensors", "README.md"})).kind
            'model'
        """
        if EXPORT in self.names:
            return "export"
        if ADAPTER_CONFIG in self.names:
            return "adapter"
        # A file in a folder of the repository is not loaded.
        top_names = [name for name in self.names if "/" not in name]
        if any(name == "config.json" or name.endswith((".safetensors", ".bin")) for name in top_names):
            return "model"
        return None


def check_repo_name(repo: str, argument: str = "REPO") -> None:
    """Refuse what cannot be the name of a repository.

    Args:
        repo: The name.
        argument: The argument that it comes from, for the message.

    Raises:
        UserError: It is not owner/name, or it has letters that the Hub does not take.

    Example:
        >>> check_repo_name("me/whisper-small-hindi")
        >>> check_repo_name("whisper-small-hindi")
        Traceback (most recent call last):
        whisper_peft.errors.UserError: REPO whisper-small-hindi: not the name of a repository; write owner/name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1:
        raise UserError(f"{argument} {repo}: not the name of a repository; write owner/name.")
    try:
        # huggingface_hub 0.x takes letters of any script, which the Hub does not.
        validate_repo_id(repo if repo.isascii() else "")
    except HFValidationError:
        raise UserError(
            f"{argument} {repo}: not the name of a repository; use letters, digits, '-', '_' and '.', at most 96 in "
            "all, without '--' or '..'."
        ) from None


def check_login(repo: str) -> None:
    """Refuse to begin without a login that may write.

    Args:
        repo: The repository, for the message.

    Raises:
        UserError: There is no token, the Hub refuses it, or it may only read.
        Unreachable: The Hub does not answer.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(f"{repo}: no login for the Hub; {LOGIN}.")
    with explain_hub_errors(repo):
        user = HfApi().whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"{repo}: the login may only read; {LOGIN}.")


def look_into(repo: str, kind: str) -> RepoState:
    """List what a repository holds. It must be of the kind that is to be published, or hold no weights.

    Args:
        repo: Name of the repository, owner/name.
        kind: "adapter", "model" or "export".

    Raises:
        UserError: It holds weights of another kind.
        Unreachable: The Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with explain_hub_errors(repo):
        try:
            state = RepoState(True, frozenset(HfApi().list_repo_files(repo)))
        except RepositoryNotFoundError:
            return RepoState(False)
    if state.kind not in (None, kind):
        raise UserError(
            f"{repo}: holds {KIND_IN_WORDS[state.kind]}, and this is {KIND_IN_WORDS[kind]}, which never replaces it; "
            "name another REPO."
        )
    return state


def check_base(repo: str, sha256: str | None) -> None:
    """Make sure that an adapter's base is on the Hub, with the weights that the adapter was trained on.

    Args:
        repo: Repository of the base.
        sha256: SHA-256 of the base's weights, as the adapter knows it; None if it does not. Weights in more than one
            file are not compared.

    Raises:
        UserError: There is no such repository, or it holds other weights.
        Unreachable: The Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with explain_hub_errors(repo):
        try:
            weights = HfApi().get_paths_info(repo, [WEIGHTS])
        except RepositoryNotFoundError:
            raise UserError(f"--base {repo}: not on the Hub; an adapter can be loaded only with its base.") from None
    lfs = getattr(weights[0], "lfs", None) if weights else None
    if sha256 and lfs and lfs.sha256 and lfs.sha256 != sha256:
        raise UserError(
            f"--base {repo}: not the weights this adapter was trained on (another SHA-256); name the right one, or "
            "merge the adapter and publish the merged model."
        )


def send(
    repo: str, files: Sequence[RepoFile], state: RepoState, *, private: bool, message: str
) -> tuple[str, str, bool]:
    """Add files to a repository as one commit. Whatever else is in it stays, and so does a card that was edited.

    Args:
        repo: Name of the repository, owner/name. It is made if it is not there.
        files: The files to add.
        state: What `look_into` found in the repository.
        private: Whether a new repository is private.
        message: Message of the commit.

    Returns:
        Address of the repository, id of the commit, and whether an edited card was left as it was.

    Raises:
        UserError: The login may not write there, or the repository has weights that would be loaded instead of these.
        Unreachable: The Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    if WEIGHTS in state.names and WEIGHTS_INDEX in {file.name for file in files}:
        raise UserError(f"{repo}: holds a {WEIGHTS} that would be loaded instead of these parts; name another REPO.")
    with explain_hub_errors(repo):
        is_edited = CARD in state.names and _is_card_edited(repo)
        if not state.exists:
            # None rather than False: an organisation may make its new repositories private.
            api.create_repo(repo, private=private or None, exist_ok=True)
        operations = []
        for file in files:
            if is_edited and file.name == CARD:
                continue
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            operations.append(CommitOperationAdd(file.name, content))
        commit = api.create_commit(repo, operations, commit_message=message)
    return f"{api.endpoint}/{repo}", commit.oid, is_edited


def _is_card_edited(repo: str) -> bool:
    from huggingface_hub import hf_hub_download

    card = Path(hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
    return bool(card.strip()) and not is_untouched(card)


@contextlib.contextmanager
def explain_hub_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line that says where, what, and the remedy."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"{repo}: no login for the Hub; {LOGIN}.") from None
    except OfflineModeIsEnabled:
        raise Unreachable(f"{repo}: HF_HUB_OFFLINE is set; unset it to reach the Hub.") from None
    except _network_errors() as error:
        raise _explain_response(repo, error) from None
    except RuntimeError as error:
        # An upload in a thread of the client failed. Its cause is the network's error; any other is a bug.
        if not isinstance(error.__cause__, _network_errors()):
            raise
        raise _explain_response(repo, error.__cause__) from None


def _network_errors() -> tuple[type[BaseException], ...]:
    """Return what the client raises, on httpx as on requests (huggingface_hub 0.x)."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error = next(parent for parent in HfHubHTTPError.__mro__[1:] if parent.__name__ == "HTTPError")
    # In requests a lost connection is no HTTPError. Both are a RequestException, the parent class.
    parent = http_error.__mro__[1]
    library_error = http_error if parent is Exception else parent
    return (library_error, ConnectionError, TimeoutError)


def _explain_response(repo: str, error: BaseException) -> UserError:
    """Say in one line what a network's error means for the user."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        return UserError(f"{repo}: the Hub does not accept the login; {LOGIN}.")
    if status == 403:
        return UserError(f"{repo}: this login may not write there; name a REPO of your own, or {LOGIN}.")
    if status is None:
        return Unreachable(
            f"{repo}: the Hub cannot be reached ({type(error).__name__}); check the network, then try again."
        )
    reason = getattr(error, "server_message", None) or "no reason given"
    reason = _without_token(" ".join(reason.split())[:200])
    line = f"{repo}: the Hub answers {status} ({reason}); try again later."
    # 429: too many requests.
    if status >= 500 or status == 429:
        return Unreachable(line)
    return UserError(line)


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "…") if token else text
