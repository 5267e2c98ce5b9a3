#!/usr/bin/python3
"""etcd's users and roles as they are wanted, by etcdctl on the host where it runs."""

import base64
import json

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: etcd_auth
short_description: Users and roles of etcd, and that it asks for them
description:
  - Makes the users and roles that are named here, with the permissions and passwords that they are to have, and has etcd ask
    who comes. A role that is named has these permissions and no other; those that aren't named stay as they are.
options:
  etcdctl:
    description: etcdctl's variables, ETCDCTL_USER not among them.
    type: dict
    required: true
  password:
    description: That of the user root, who does all this.
    type: str
    required: true
  roles:
    description: By name, what each may do. A key that ends in C(/) is a prefix.
    type: dict
    required: true
  users:
    description: Each with its roles, and its password where it has one.
    type: list
    elements: dict
    required: true
author: the authors of haproxy-discover
"""

EXAMPLES = """
- name: Have a viewer
  etcd_auth:
    etcdctl: {ETCDCTL_ENDPOINTS: "http://127.0.0.1:2379"}
    password: "{{ root }}"
    roles: {reader: {read: [/haproxy-discover/]}}
    users:
      - {name: root, password: "{{ root }}", roles: [root]}
      - {name: viewer, password: "{{ viewer }}", roles: [reader]}
"""

TIMES = {"ETCDCTL_DIAL_TIMEOUT": "20s", "ETCDCTL_COMMAND_TIMEOUT": "30s"}
# etcd's own numbers.
KINDS = {"read": 0, "readwrite": 2}
# What etcd says to one who comes without a user, with a certificate or without.
ASKS = ["permission denied", "user name is empty"]
WRONG = "invalid user ID or password"


def wanted(permissions):
    """The permissions of a role as etcd has them: the key, the first key after it, the kind."""
    return {
        (key, key[:-1] + chr(ord(key[-1]) + 1) if key.endswith("/") else "", KINDS[kind])
        for kind, keys in permissions.items()
        for key in keys
    }


def current(answer):
    """The same, out of what etcdctl says of a role."""

    def text(entry, name):
        return base64.b64decode(entry.get(name, "")).decode()

    return {(text(entry, "key"), text(entry, "range_end"), entry.get("permType", 0)) for entry in answer.get("perm", [])}


class Etcd:
    """etcdctl, and whether it has changed anything."""

    def __init__(self, module):
        self.module = module
        self.changed = False
        # A login is slow by design, and etcdctl's 2 s are too few for it on a busy host.
        self.variables = dict(TIMES, ETCDCTL_API="3", **module.params["etcdctl"])
        self.root = {"ETCDCTL_USER": "root:" + module.params["password"]}

    def run(self, arguments, user, data=None):
        """Whether a command succeeds, and what it says."""
        environment = dict(self.variables, **user)
        code, out, err = self.module.run_command(["etcdctl", *arguments], data=data, environ_update=environment)
        return code == 0, out if code == 0 else err

    def ask(self, *arguments):
        """What there is, as root."""
        done, said = self.run([*arguments, "--write-out", "json"], self.root)
        if not done:
            self.fail(arguments, said)
        return json.loads(said)

    def change(self, *arguments, data=None):
        """A change, as root; only noted when nothing may be changed."""
        self.changed = True
        if self.module.check_mode:
            return
        done, said = self.run(arguments, self.root, data)
        if not done:
            self.fail(arguments, said)

    def fail(self, arguments, said):
        """Ends it, with etcdctl's own words; the last line has them."""
        self.module.fail_json(msg="etcdctl " + " ".join(arguments) + ": " + (said.strip().splitlines() or ["failed"])[-1])

    def role(self, name, permissions, known):
        """A role has these permissions, and no other."""
        if not known:
            self.change("role", "add", name)
        has = current(self.ask("role", "get", name)) if known else set()
        # Another kind for the same keys takes the place of the one there is.
        kept = {(key, end) for key, end, _ in permissions}
        for key, end in sorted({(key, end) for key, end, _ in has} - kept):
            self.change("role", "revoke-permission", name, key, *([end] if end else []))
        for key, end, kind in sorted(permissions - has):
            word = [word for word, number in KINDS.items() if number == kind][0]
            self.change("role", "grant-permission", name, word, key, *([end] if end else []))

    def user(self, name, password, roles, known):
        """A user has these roles, and this password or none."""
        if not known and password:
            self.change("user", "add", name, "--interactive=false", data=password)
        elif not known:
            self.change("user", "add", name, "--no-password")
        elif password and not self.login(name, password):
            self.change("user", "passwd", name, "--interactive=false", data=password)
        has = set(self.ask("user", "get", name).get("roles", [])) if known else set()
        for role in sorted(set(roles) - has):
            self.change("user", "grant-role", name, role)
        for role in sorted(has - set(roles)):
            self.change("user", "revoke-role", name, role)

    def login(self, name, password):
        """Whether the password is the user's. etcd believes any while it doesn't ask."""
        done, said = self.run(["get", "any"], {"ETCDCTL_USER": name + ":" + password})
        if not done and WRONG not in said and "permission denied" not in said:
            self.fail(["get", "any"], said)
        return WRONG not in said

    def enable(self):
        """etcd asks who comes."""
        done, said = self.run(["get", "any"], {})
        if done:
            self.change("auth", "enable")
        elif not any(words in said for words in ASKS):
            self.fail(["get", "any"], said)


def main():
    module = AnsibleModule(
        argument_spec={
            "etcdctl": {"type": "dict", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "roles": {"type": "dict", "required": True},
            "users": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "no_log": True},
                    "roles": {"type": "list", "elements": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    etcd = Etcd(module)
    roles = set(etcd.ask("role", "list").get("roles", []))
    for name, permissions in sorted(module.params["roles"].items()):
        etcd.role(name, wanted(permissions), name in roles)
    users = set(etcd.ask("user", "list").get("users", []))
    for user in module.params["users"]:
        etcd.user(user["name"], user["password"], user["roles"], user["name"] in users)
    etcd.enable()
    module.exit_json(changed=etcd.changed)


main()
