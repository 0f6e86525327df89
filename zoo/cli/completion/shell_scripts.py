"""Scripts that complete `zoo` in bash, zsh and fish: the words of `completion_tables`, and functions that choose among them."""

import collections
import textwrap
from collections.abc import Callable, Mapping, Sequence

from zoo.cli.completion.word_tables import Option, Tables, completion_tables

FILES = "@files"
"""In the place of words: names of files."""
FLAG = "@flag"
"""In the place of the values of an option: it has none."""
Case = tuple[Sequence[str], Sequence[str]]
"""Keys, and the words that each of them has."""


def completion_script(shell: str) -> str:
    """Return the completion script for a shell of `word_tables.SHELLS`."""
    first = "#compdef zoo\n" if shell == "zsh" else ""
    note = f"# Completes the command line of zoo. Made by `zoo completion {shell}`; make it again after an upgrade.\n"
    tables = "".join(_function(shell, name, *table) for name, table in _tables(completion_tables()).items())
    return f"{first}{note}\n{tables}{DRIVERS[shell]}"


def _tables(tables: Tables) -> dict[str, tuple[list[Case], str]]:
    """Return the cases of each table of a script, and its words for all other keys.

    Parts of the options have numbers, so that an option is written once for all recipes of a kind. The group of a context is the
    numbers of its parts.
    """
    parts: dict[tuple[str, ...], int] = {}
    groups: dict[str, list[str]] = {}
    by_group: dict[str, dict[str, Option]] = {}
    for context, options in tables.options.items():
        group = " ".join(str(parts.setdefault(tuple(part), len(parts))) for part in options)
        groups.setdefault(group, []).append(context)
        by_group.setdefault(group, {}).update({name: option for part in options for name, option in part.items()})
    values = _by_option(by_group, _words)
    lists = _by_option(by_group, lambda option: ("yes",) if option.is_list else ())
    return {
        "_zoo_words": ([([context], words) for context, words in tables.words.items()], FILES),
        "_zoo_group": ([(contexts, [group]) for group, contexts in groups.items()], ""),
        "_zoo_options": ([([str(number)], names) for names, number in parts.items()], ""),
        "_zoo_values": (values, FILES),
        "_zoo_is_list": (lists, ""),
    }


def _words(option: Option) -> tuple[str, ...]:
    if option.is_flag:
        return (FLAG,)
    return (FILES,) if option.values is None else option.values


def _by_option(groups: Mapping[str, Mapping[str, Option]], words: Callable[[Option], tuple[str, ...]]) -> list[Case]:
    """Return the words of "GROUP OPTION", with "* OPTION" for what most groups have, after the others."""
    exceptions: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    common: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for name in dict.fromkeys(name for options in groups.values() for name in options):
        by_group = {group: words(options[name]) for group, options in groups.items() if name in options}
        usual, _ = collections.Counter(by_group.values()).most_common(1)[0]
        common[usual].append(f"* {name}")
        for group, value in by_group.items():
            if value != usual:
                exceptions[value].append(f"{group} {name}")
    return [(keys, value) for cases in (exceptions, common) for value, keys in cases.items()]


def _function(shell: str, name: str, cases: Sequence[Case], others: str) -> str:
    """Return the function of a shell that prints the words of a key."""
    lines = []
    for keys, words in [*cases, (["*"], [others])]:
        quoted = [_pattern(shell, key) for key in keys]
        pattern = f"case {' '.join(quoted)}" if shell == "fish" else f"{'|'.join(quoted)})"
        lines += [pattern, f"    echo '{' '.join(words)}'", *([] if shell == "fish" else ["    ;;"])]
    body = textwrap.indent("\n".join(lines), "    " * (2 if shell == "fish" else 1))
    if shell == "fish":
        return f"function {name}\n    switch $argv[1]\n{body}\n    end\nend\n\n"
    return f'{name}() {{\n    case "$1" in\n{body}\n    esac\n}}\n\n'


def _pattern(shell: str, key: str) -> str:
    """Return the pattern of a key; its first character may be a wildcard, which only fish recognizes within quotes."""
    if shell != "fish" and key.startswith("*"):
        return f"*'{key[1:]}'" if key[1:] else "*"
    return f"'{key}'"


CANDIDATES = r"""# Prints the words that the first argument, the current word, may become after the others.
_zoo_candidates() {
    local current=$1 context="" group="" option="" values="" prefix="" word=""
    shift
    if [ $# -eq 0 ]; then
        _zoo_words ""
        return
    fi
    context=$1
    shift
    while [ $# -gt 0 ] && [ -n "$(_zoo_group "$context $1")" ]; do
        context="$context $1"
        shift
    done
    group=$(_zoo_group "$context")
    for word in "$@"; do
        case "$word" in
        -*=*) option="" ;;
        -*) option=$word ;;
        *) [ -n "$(_zoo_is_list "$group $option")" ] || option="" ;;
        esac
    done
    case "$current" in
    -*=*)
        option=${current%%=*}
        prefix="$option="
        ;;
    -*) option="" ;;
    esac
    [ -z "$option" ] || values=$(_zoo_values "$group $option")
    if [ -n "$option" ] && [ "$values" != @flag ]; then
        if [ "$values" != @files ] && [ -n "$prefix" ]; then
            values=" $values"
            values="${values// / $prefix}"
        fi
        echo "$values"
    elif [ "${current#-}" != "$current" ]; then
        echo --help
        for word in $(echo "$group"); do
            _zoo_options "$word"
        done
    else
        _zoo_words "$context"
    fi
}

"""
BASH = r"""_zoo() {
    local current=${COMP_WORDS[COMP_CWORD]} candidates="" word=""
    local -a line=() matches=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        # Bash divides --name=value into three words.
        [ "$word" = "=" ] || line+=("$word")
    done
    [ "$current" != "=" ] || current=""
    candidates=$(_zoo_candidates "$current" ${line[@]+"${line[@]}"})
    if [ "$candidates" = @files ]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$current")
    fi
}

complete -F _zoo zoo
"""
ZSH = r"""_zoo() {
    local candidates
    candidates=$(_zoo_candidates "$words[CURRENT]" "${(@)words[2,CURRENT-1]}")
    if [[ $candidates == @files ]]; then
        compset -P '--*='
        _files
    else
        compadd -- ${=candidates}
    fi
}

# Read from a folder of $fpath, this file is the function itself.
if [[ $funcstack[1] == _zoo ]]; then
    _zoo "$@"
else
    compdef _zoo zoo
fi
"""
FISH = r"""# Prints the words that the current word may become.
function _zoo_candidates
    set -l current (commandline -ct)
    set -l line (commandline -opc)
    set -e line[1]
    if test (count $line) -eq 0
        _zoo_words '' | string split ' '
        return
    end
    set -l context $line[1]
    set -e line[1]
    while set -q line[1]; and test -n (_zoo_group "$context $line[1]")
        set context "$context $line[1]"
        set -e line[1]
    end
    set -l group (_zoo_group $context)
    set -l option ''
    for word in $line
        switch $word
            case '-*=*'
                set option ''
            case '-*'
                set option $word
            case '*'
                test -n (_zoo_is_list "$group $option"); or set option ''
        end
    end
    set -l prefix ''
    switch $current
        case '-*=*'
            set option (string split -m 1 = -- $current)[1]
            set prefix "$option="
        case '-*'
            set option ''
    end
    set -l values
    if test -n "$option"
        set values (_zoo_values "$group $option" | string split ' ')
        test "$values" != @flag; or set option ''
    end
    if test -z "$option"
        if string match -q -- '-*' $current
            set values --help
            for part in (string split ' ' $group)
                set -a values (_zoo_options $part | string split ' ')
            end
        else
            set values (_zoo_words $context | string split ' ')
        end
    end
    if test "$values" = @files
        __fish_complete_path (string replace -- $prefix '' $current)
    else
        printf '%s\n' $prefix$values
    end
end

complete -c zoo -f -a '(_zoo_candidates)'
"""
DRIVERS = {"bash": CANDIDATES + BASH, "zsh": CANDIDATES + ZSH, "fish": FISH}
"""Shell -> the functions of its script after the tables."""
