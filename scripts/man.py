#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes dilocox.1 and dilocox.yaml.5 from what the command says of itself.

man.py DILOCOX PAGE_1 PAGE_5: subcommands come from `dilocox --help` and `dilocox NAME --help`,
options from `dilocox config --options`. Only the text around them is here."""
import re
import subprocess
import sys

SECTIONS = {"run": "The run", "model": "The model", "data": "Data", "train": "Inner training",
            "site": "A site", "sync": "Synchronisation", "wan": "The network between sites"}

# the same for all subcommands, and said once
COMMON = {"--help, -h", "--"}

INTRODUCTION = """\
trains one neural network on machines in several places that share only a slow network.
Each site trains on its own for many steps; then the sites agree on one outer step.
What they send for it is compressed and travels while the next steps already run.
.PP
A run has one coordinator and one or more sites.
.B dilocox launch
starts all of them on one machine;
.B dilocox coordinator
and
.B dilocox train
start one each.
Their options come from a file,
.BR dilocox.yaml (5).
.PP
.B \\-\\-help
and
.B \\-h
show the use of a subcommand;
.B \\-\\-
ends its options, so that what follows may begin with \\-."""

AFTER = """\
.SH SIGNALS
The first SIGINT or SIGTERM stops a run and saves the last anchor; the second ends the process at
once.
SIGTERM to
.B dilocox coordinator
stops it alone: the run waits until it is started again.
SIGUSR1 to
.BR mpirun (1)
asks all ranks of its job to stop and save.
.SH FILES
Below the option
.BR run.dir :
.TP
.I coordinator.db
where the coordinator runs, while the run is not over: what it goes on with when it is started
again
.TP
.I summary.json
the figures of the run, where the coordinator ran
.TP
.IR SITE /metrics.jsonl
one JSON object per inner step, round and evaluation
.TP
.IR SITE /summary.json
the figures of one site
.TP
.I weights/
the model in the format of Hugging Face, on the site whose name sorts first
.SH STANDARD OUTPUT
What
.BR bench ,
.BR config ,
.BR eval ,
.BR generate ,
.BR inspect ,
.B keygen
and
.B plan
print is their result: they fail if it is lost, and end with status 141 or by SIGPIPE if its reader
closes the pipe.
.BR launch ,
.BR train ,
.B coordinator
and
.B tokenize
go on without their output, closed or full, and end with the status that they would have with it.
If
.B launch
is killed, its sites save the last anchor and end.
.SH EXIT STATUS
0: done. 1: the run failed, or output was lost. 2: wrong use or configuration.
.SH EXAMPLES
Two sites on this machine learn a book, then one of them continues a sentence:
.PP
.in +4n
.EX
dilocox tokenize book.txt data/book \\-\\-validation\\-every 20
dilocox launch book.yaml \\-\\-sites 2
dilocox generate runs/book/weights \\-\\-prompt "In the beginning"
.EE
.in
.SH SEE ALSO
.BR dilocox.yaml (5),
.BR mpirun (1)"""

OPTIONS_INTRODUCTION = """\
The options of a run are a YAML file of sections. An option that the file leaves out has its
default, and
.BI \\-\\-set " SECTION" . NAME = VALUE
on the command line comes after the file. An unknown option, a wrong type or a value out of range
is an error that names the file, the line, the option and the allowed range.
.PP
All sites of a run share one file. The coordinator refuses a site whose settings differ, and names
the option; only options that concern one site alone, such as the paths of its data and its
addresses, may differ.
.PP
.B dilocox config \\-\\-defaults
prints such a file with all options at their defaults.
.SH EXAMPLE
.in +4n
.EX
run: {name: book, dir: runs/book}
model: {layers: 4, width: 256, heads: 8, context: 256}
data: {train: data/book.train.tokens, validation: data/book.validation.tokens}
train: {tokens: 2.0e6}
sync: {overlap: carry, inner_steps: 16}
.EE
.in"""


def ask(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def roff(text):
    """Plain text as roff: no character means more than itself, and all are ASCII."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"^([.'])", r"\\&\1", text)
    return "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)


def title(name, section, version, summary):
    """No date: the same source gives the same page."""
    return [f'.TH {name.upper()} {section} "" "dilocox {version}"', ".SH NAME",
            f"{roff(name)} \\- {summary}"]


def subcommand(program, name):
    """Roff of `dilocox NAME --help`: a line of use, prose, then lines of an option and its text."""
    use, *lines = ask(program, name, "--help").strip().splitlines()
    page = [f".SS {roff(use)}"]
    for line in lines:
        option = re.match(r"\s+(--\S.*?|--|[A-Z]+)\s{2,}(\S.*)$", line)
        if option is None and line.strip():
            page.append(roff(line.strip()))
        elif option and option[1] not in COMMON:
            page += [".TP", f".B {roff(option[1])}", roff(option[2])]
    return page


def command_page(program, version):
    names = re.findall(r"^ +dilocox (\w+)", ask(program, "--help"), re.MULTILINE)
    if not names:
        sys.exit("man.py: 'dilocox --help' lists no subcommands")
    page = title("dilocox", 1, version, "train one model on sites joined by slow networks")
    page += [".SH SYNOPSIS", ".B dilocox", r"\fISUBCOMMAND\fR [\fIARGUMENT\fR]\&...", ".br",
             r".B dilocox \fISUBCOMMAND\fB \-\-help", ".br", r".B dilocox \-\-version",
             ".SH DESCRIPTION", ".B dilocox", INTRODUCTION, ".SH SUBCOMMANDS"]
    for name in names:
        page += subcommand(program, name)
    return page + [AFTER]


def options_page(program, version):
    page = title("dilocox.yaml", 5, version, "options of a dilocox run")
    page += [".SH DESCRIPTION", OPTIONS_INTRODUCTION, ".SH OPTIONS"]
    present = None
    options, times = ask(program, "config", "--options").split("\n\n", 1)
    for line in options.splitlines():
        option = re.match(r"\s*([a-z0-9_]+)(\.[a-z0-9_.]+)=(.*?)(?:\s{2,}(\S.*))?$", line)
        if option is None:
            sys.exit(f"man.py: not a line of 'dilocox config --options': '{line}'")
        section, rest, default, text = option.groups()
        if section != present:
            page.append(f".SS {roff(SECTIONS.get(section, section))}")
            present = section
        shown = f"(default: {default.strip()})" if default.strip() else "(default: empty)"
        page += [".TP", f'.BR {roff(section + rest)} " {roff(shown)}"', roff(text or "")]
    page += [".SH TIMES", ".nf", *map(roff, times.splitlines()), ".fi"]
    return page + [".SH SEE ALSO", ".BR dilocox (1)"]


def main():
    program, command, options = sys.argv[1:]
    version = ask(program, "--version").split()[-1]
    for path, page in ((command, command_page(program, version)),
                       (options, options_page(program, version))):
        with open(path, "w", encoding="ascii") as out:
            out.write("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
