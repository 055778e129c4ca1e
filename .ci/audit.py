"""Check the installed packages for known vulnerabilities, where the database can be reached.

`pip-audit` fails both if it finds a vulnerability and if it finds no database, and it succeeds if the database knows
none of the packages. This fails in the first case alone, and says in one line when nothing was checked.
"""

from __future__ import annotations

import json
import subprocess
import sys

_COMMAND = ("-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "--format", "json")
_SECONDS = 300


def verdict(report: str, said: str = "") -> tuple[int, str]:
    """Return the exit code and the lines to print for a report of pip-audit.

    Args:
        report: The report as JSON, empty if there is none.
        said: What else it printed, whose last line gives the reason for a missing report.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (said.strip().splitlines() or ["no report"])[-1]
        return 0, f"Vulnerabilities: not checked, because there is no report ({reason[:100]})."
    checked = [package for package in packages if "vulns" in package]
    found = [
        f"  {package['name']} {package['version']}: {each['id']}, fixed in {', '.join(each['fix_versions']) or 'none'}"
        for package in checked
        for each in package["vulns"]
    ]
    if not checked:
        return 0, f"Vulnerabilities: not checked, because the database knows none of {len(packages)} packages."
    counts = f"{len(found)} known in {len(checked)} of {len(packages)} packages that the database knows"
    return int(bool(found)), "\n".join([f"Vulnerabilities: {counts}.", *found])


def main() -> None:
    """Run pip-audit, print the verdict and exit with its code."""
    try:
        done = subprocess.run(
            [sys.executable, *_COMMAND], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        code, text = verdict(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        code, text = verdict("", f"no answer within {_SECONDS} seconds")
    print(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
