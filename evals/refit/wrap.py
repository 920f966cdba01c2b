#!/usr/bin/env python3
"""Puts `refit` around the policies of a plan's prefill: `wrap.py BIN PLAN QUERIES RIDGE > NEW`. The new plan is JSON, which is YAML too."""

import json
import subprocess
import sys

binary, plan, queries, ridge = sys.argv[1:]
shown = json.loads(subprocess.run([binary, "plan", "show", plan, "--json"], check=True, stdout=subprocess.PIPE).stdout)
del shown["hash"]
for rule in shown["prefill"]:
    base = {"policy": rule["policy"], **rule.get("params", {})}
    rule |= {"policy": "refit", "params": {"base": base, "queries": int(queries), "ridge": float(ridge)}}
print(json.dumps({**shown, "name": f"{shown['name']}-refit-{queries}-{ridge}"}, indent=1))
