"""The commands about people: `users add|list|role|disable|enable|password|token` and `erase-user`."""

import argparse
import getpass
import sys
from collections.abc import Callable
from typing import Any

from feedback_store.accounts import ROLES, Account
from feedback_store.erasure import erase_user, find_erasable, purge
from feedback_store.errors import BadInput
from feedback_store.records import Person, Role
from feedback_store.store import Store

Commands = Any
"""What argparse's add_subparsers returns; its type has no public name."""


def add_user_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the parsers of `users` and `erase-user`."""
    users = commands.add_parser("users", help="who may log in").add_subparsers(
        dest="users_command", required=True, metavar="COMMAND"
    )
    helps = {
        "add": "let somebody log in; the first operator takes over what the local owner had",
        "list": "who may log in",
        "role": "change what somebody may do",
        "disable": "shut somebody out at once, keeping what is theirs",
        "enable": "let somebody in again",
        "password": "change a password and end that person's sessions",
        "token": "make a token for the API; it is shown once",
    }
    parsers = {name: users.add_parser(name, parents=[common], help=text) for name, text in helps.items()}
    for name, parser in parsers.items():
        if name != "list":
            parser.add_argument("name", metavar="NAME")
    parsers["add"].add_argument("--role", choices=ROLES, help="member, or operator for the first one, unless given")
    parsers["role"].add_argument("role", metavar="ROLE", choices=ROLES, help=" or ".join(ROLES))
    for name in ("add", "password"):
        parsers[name].add_argument("--password-stdin", action="store_true", help="read the password from a pipe")
    parsers["token"].add_argument("--label", default="api", metavar="L", help="says what it is for")
    parsers["token"].add_argument("--revoke", action="store_true", help="revoke the tokens of that label instead")
    erase = commands.add_parser("erase-user", parents=[common], help="remove somebody and everything of theirs")
    whom = erase.add_mutually_exclusive_group(required=True)
    whom.add_argument("name", metavar="NAME", nargs="?")
    whom.add_argument("--finish", action="store_true", help="remove the traces that an earlier erasure had to leave")
    erase.add_argument("--yes", action="store_true", help="do not ask")


def run_user_command(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of these commands and return what to show."""
    if arguments.command == "erase-user" and arguments.finish:
        return {"clean": purge(store.connections)}
    if arguments.command == "erase-user":
        return _erase(store, arguments.name, sure=arguments.yes)
    accounts = store.accounts
    match arguments.users_command:
        case "add":
            return _add(store, arguments)
        case "list":
            return {"users": [_shown(account) for account in accounts.list()]}
        case "role":
            return _person(accounts.set_role(arguments.name, arguments.role))
        case "disable":
            return _person(accounts.disable(arguments.name))
        case "enable":
            return _person(accounts.enable(arguments.name))
        case "password":
            store.people.get(arguments.name)  # before somebody types a password for nobody
            accounts.set_password(arguments.name, _password(from_pipe=arguments.password_stdin))
            return {"ok": True, "name": arguments.name}
        case _:
            return _token(store, arguments)


def _add(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    role: Role = arguments.role or ("member" if store.accounts.has_operator() else "operator")
    person = store.accounts.add(arguments.name, _password(from_pipe=arguments.password_stdin), role)
    return {**_person(person), "inherits_local_owner": person.kind == "owner"}


def _token(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    person = store.people.get(arguments.name)
    if arguments.revoke:
        revoked = store.sessions.revoke_token(person.id, arguments.label)
        return {"ok": True, "name": person.name, "label": arguments.label, "revoked": revoked}
    token = store.sessions.new_token(person.id, arguments.label)
    return {"name": person.name, "label": arguments.label, "token": token}


def _erase(store: Store, name: str, *, sure: bool) -> dict[str, Any]:
    find_erasable(store, name)
    if not sure and not sys.stdin.isatty():
        raise BadInput("Erasing cannot be undone; add --yes to do it without being asked.")
    if not sure and _ask(input, f"Everything of {name} will be erased. Type the name again to go on: ") != name:
        raise BadInput("Nothing was erased, because the name was not typed again.")
    done = erase_user(store, name)
    return {
        "clean": done.clean,
        "name": done.name,
        "rows": done.rows,
        "tainted_adapters": list(done.adapters),
        "live_is_tainted": done.live_tainted,
        "files": [str(path) for path in done.files],
        "backups": [str(path) for path in done.backups],
        "remains": list(done.remains),
    }


def _password(*, from_pipe: bool) -> str:
    if from_pipe:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise BadInput("There is no terminal to ask for a password; pipe it in with --password-stdin.")
    password = _ask(getpass.getpass, "Password: ")
    if _ask(getpass.getpass, "Again: ") != password:
        raise BadInput("The two passwords differ; try again.")
    return password


def _ask(how: Callable[[str], str], question: str) -> str:
    try:
        return how(question)
    except EOFError:
        raise BadInput("Nothing was done, because nothing was typed.") from None


def _person(person: Person) -> dict[str, Any]:
    return {"name": person.name, "role": person.role, "disabled": person.disabled}


def _shown(account: Account) -> dict[str, Any]:
    person = account.person
    return {
        **_person(person),
        "teach": person.teach,
        "created_at": account.created_at,
        "seen_at": account.seen_at,
        "tokens": account.tokens,
    }
