"""The commands about people: `users add|list|role|disable|enable|password|token` and `erase-user`."""

import argparse
import getpass
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

from feedback_store.accounts import ROLES, Account
from feedback_store.erasure import described, erase_user, find_erasable, purge
from feedback_store.errors import BadInput
from feedback_store.records import Person, PersonKind, Role
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
        "token": "make a token for the API, which is shown once; list or revoke tokens",
    }
    parsers = {name: users.add_parser(name, parents=[common], help=text) for name, text in helps.items()}
    for name, parser in parsers.items():
        if name != "list":
            parser.add_argument("name", metavar="NAME")
    parsers["add"].add_argument("--role", choices=ROLES, help="member unless given; the very first one operator")
    parsers["role"].add_argument("role", metavar="ROLE", choices=ROLES, help=" or ".join(ROLES))
    for name in ("add", "password"):
        parsers[name].add_argument("--password-stdin", action="store_true", help="read the password from a pipe")
    tokens = parsers["token"].add_mutually_exclusive_group()
    tokens.add_argument("--label", default="api", metavar="L", help="says what the new one is for")
    tokens.add_argument("--list", action="store_true", help="list those there are instead, with their ids")
    tokens.add_argument("--revoke", metavar="ID", help="revoke one instead, or all")
    _add_erase(commands, common)


def _add_erase(commands: Commands, common: argparse.ArgumentParser) -> None:
    erase = commands.add_parser("erase-user", parents=[common], help="remove somebody and everything of theirs")
    whom = erase.add_mutually_exclusive_group(required=True)
    whom.add_argument("name", metavar="NAME", nargs="?", help="here or in an imported file; everybody of that name")
    whom.add_argument("--finish", action="store_true", help="remove the traces that an earlier erasure had to leave")
    erase.add_argument("--kind", choices=get_args(PersonKind), help="only this one, where two have the name")
    erase.add_argument("--yes", action="store_true", help="do not ask")


def run_user_command(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of these commands and return what to show."""
    if arguments.command == "erase-user" and arguments.finish:
        return {"clean": purge(store.connections)}
    if arguments.command == "erase-user":
        return _erase(store, arguments.name, arguments.kind, sure=arguments.yes)
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
            accounts.get(arguments.name)  # before somebody types a password for nobody
            accounts.set_password(arguments.name, _password(from_pipe=arguments.password_stdin))
            return {"ok": True, "name": arguments.name}
        case "token":
            return _token(store, arguments)
    raise AssertionError("the parser lets no other command through")


def _add(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    accounts = store.accounts
    role: Role = arguments.role or accounts.role_of_next()
    accounts.check_new(arguments.name, role)  # before somebody types a password in vain
    person = accounts.add(arguments.name, _password(from_pipe=arguments.password_stdin), role)
    added = {**_person(person), "inherits_local_owner": person.kind == "owner"}
    if not accounts.has_operator():
        added["note"] = f"There is no operator; `users role {person.name} operator` makes one."
    return added


def _token(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    person = store.accounts.get(arguments.name)
    if arguments.list:
        return {"name": person.name, "tokens": [asdict(token) for token in store.sessions.tokens(person.id)]}
    if arguments.revoke == "all":
        return {"ok": True, "name": person.name, "revoked": store.sessions.revoke_tokens(person.id)}
    if arguments.revoke is not None:
        store.sessions.revoke_token(person.id, arguments.revoke)
        return {"ok": True, "name": person.name, "revoked": 1}
    token = store.sessions.new_token(person.id, arguments.label)
    return {"name": person.name, "label": arguments.label, "token": token}


def _erase(store: Store, name: str, kind: PersonKind | None, *, sure: bool) -> dict[str, Any]:
    whom = " and ".join(described(person, name) for person in find_erasable(store, name, kind))
    if not sure and not sys.stdin.isatty():
        raise BadInput(f"Erasing {whom} cannot be undone; add --yes to do it without being asked.")
    if not sure and _ask(input, f"Everything of {whom} will be erased. Type {name} to go on: ") != name:
        raise BadInput("Nothing was erased, because the name was not typed again.")
    done = erase_user(store, name, kind)
    return {
        "clean": done.clean,
        "name": done.name,
        "persons": [{"name": person.name, "kind": person.kind} for person in done.persons],
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
    except (EOFError, KeyboardInterrupt):
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
