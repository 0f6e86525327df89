"""Chat templates that attack the program which renders them, and ordinary ones that it must render."""

from typing import NamedTuple


class HostileTemplate(NamedTuple):
    """A template; the name is unique and fits a file name."""

    name: str
    what: str
    """One line: what it tries."""
    content: str
    refused: bool = True
    """False if it must be rendered, without doing what it tries."""


DOUBLED = "{% set ns = namespace(x='a') %}{% for i in range(40) %}"
"""The beginning of a template that doubles a text forty times."""
NESTED = "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
"""The beginning of a template with a list of forty levels, each of which has the level below twice."""

TIME = [
    HostileTemplate(
        "loops", "nested loops over ranges of 100,000 numbers", "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    ),
    HostileTemplate(
        "loops-continue", "loops that write nothing", "{% for a in range(99999) %}" * 3 + "{% continue %}" + "{% endfor %}" * 3
    ),
    HostileTemplate(
        "loop-condition",
        "a loop whose condition is a loop",
        "{% macro f() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}{% for a in range(99999) if f() %}x{% endfor %}",
    ),
    HostileTemplate("power", "a power with ten million digits", "{{ 10 ** 10000000 }}"),
    HostileTemplate("power-power", "a power of powers", "{{ 9 ** (9 ** (9 ** 9)) }}"),
    HostileTemplate(
        "product",
        "a number that is squared a hundred times",
        "{% set ns = namespace(x=9) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}",
    ),
    HostileTemplate("constant-power", "a power that the compiler computes", "{% if 10 ** 10000000 > 1 %}x{% endif %}"),
    HostileTemplate(
        "map-loops",
        "filters that iterate in loops",
        "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    ),
    HostileTemplate("sum-ranges", "sums of ranges in a loop", "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}"),
    HostileTemplate(
        "sort", "sorting in a loop", "{% for a in range(99999) %}{{ (range(99999) | sort(reverse=true))[0] }}{% endfor %}"
    ),
    HostileTemplate(
        "batch",
        "batches of one in a loop",
        "{% for a in range(99999) %}{{ range(99999) | batch(1) | list | length }}{% endfor %}",
    ),
    HostileTemplate(
        "unique", "unique values in a loop", "{% for a in range(99999) %}{{ range(99999) | unique | list | length }}{% endfor %}"
    ),
    HostileTemplate(
        "compare", "comparison of two lists that share their parts", NESTED + "{% set a = ns.x %}" + NESTED + "{{ a == ns.x }}"
    ),
    HostileTemplate(
        "tuple-hash",
        "the hash of a tuple that shares its parts",
        NESTED.replace("[", "(").replace("]", ",)") + "{{ {ns.x: 1} | length }}",
    ),
    HostileTemplate("contains", "a search in a list that shares its parts", NESTED + "{{ 'b' in (ns.x | string) }}"),
    HostileTemplate(
        "wordwrap",
        "lines of one character",
        "{% for i in range(99999) %}{{ ('ab ' * (i + 99999)) | wordwrap(1) | length }}{% endfor %}",
    ),
    HostileTemplate(
        "urlize",
        "links in a long text",
        "{% for i in range(99999) %}{{ ('http://a.b/(' * (i + 9999)) | urlize | length }}{% endfor %}",
    ),
    HostileTemplate(
        "striptags",
        "tags in a long text",
        "{% for i in range(99999) %}{{ ('<!--' * (i + 99999)) | striptags | length }}{% endfor %}",
    ),
    HostileTemplate("lipsum", "a filler text of a billion paragraphs", "{{ lipsum(n=10**9) }}"),
    HostileTemplate(
        "cycler",
        "a loop over a cycler",
        "{% set c = cycler('a') %}" + "{% for a in range(99999) %}" * 3 + "{% set x = c.next() %}" + "{% endfor %}" * 3,
    ),
    HostileTemplate(
        "macro-tree",
        "a macro that calls itself twice, to a depth of 60",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ),
    HostileTemplate(
        "recursive-loop",
        "a recursive loop over a tree that shares its parts",
        NESTED + "{% for y in ns.x recursive %}{% if y is not string %}{{ loop(y) }}{% endif %}{% endfor %}",
    ),
    HostileTemplate(
        "groupby", "groups in a loop", "{% for a in range(99999) %}{{ range(99999) | groupby('real') | length }}{% endfor %}"
    ),
]
MEMORY = [
    HostileTemplate("repeat", "a text of a billion characters", "{{ 'a' * 10**9 }}"),
    HostileTemplate("repeat-unwritten", "a text of a billion characters that is not written", "{% set x = 'a' * 10**9 %}"),
    HostileTemplate("repeat-list", "a list of ten billion entries", "{% set x = [0] * 10**10 %}"),
    HostileTemplate("repeat-tuple", "a tuple of ten billion entries", "{{ ((0,) * 10**10) | length }}"),
    HostileTemplate("center", "a text centred in a billion characters", "{{ 'a' | center(10**9) }}"),
    HostileTemplate("ljust", "a text padded to a billion characters", "{{ 'a'.ljust(10**9) }}"),
    HostileTemplate("rjust", "a text padded on the left", "{{ 'a'.rjust(10**9) }}"),
    HostileTemplate("zfill", "a text padded with zeros", "{{ 'a'.zfill(10**9) }}"),
    HostileTemplate("expandtabs", "a tab of a billion columns", "{{ '\\t'.expandtabs(10**9) }}"),
    HostileTemplate("percent", "a width of a billion with %", "{{ '%1000000000d' % 1 }}"),
    HostileTemplate("percent-star", "a width in an argument of %", "{{ '%*d' % (10**9, 1) }}"),
    HostileTemplate("percent-precision", "a precision of a billion with %", "{{ '%.1000000000f' % 1.5 }}"),
    HostileTemplate("format-filter", "a width of a billion in the filter format", "{{ '%1000000000s' | format('a') }}"),
    HostileTemplate("format-method", "a width of a billion in str.format", "{{ '{:>1000000000}'.format(1) }}"),
    HostileTemplate("format-nested", "a width in a nested field of str.format", "{{ '{:>{}}'.format(1, 10**9) }}"),
    HostileTemplate("format-map", "a width in str.format_map", "{{ '{a:>1000000000}'.format_map({'a': 1}) }}"),
    HostileTemplate(
        "replace-filter",
        "replacements that grow a text",
        DOUBLED + "{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}{{ ns.x }}",
    ),
    HostileTemplate(
        "replace-method", "replacements by a method", DOUBLED + "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}{{ ns.x }}"
    ),
    HostileTemplate(
        "join", "joins that grow a text", DOUBLED + "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    HostileTemplate(
        "join-method", "joins by a method", DOUBLED + "{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}{{ ns.x }}"
    ),
    HostileTemplate("plus", "sums of texts", DOUBLED + "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"),
    HostileTemplate("tilde", "concatenations of texts", DOUBLED + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"),
    HostileTemplate(
        "capture",
        "captured blocks that grow",
        DOUBLED + "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}{% endfor %}{{ ns.x }}",
    ),
    HostileTemplate(
        "lists",
        "sums of lists",
        "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ),
    HostileTemplate("shared-string", "the text of a list that shares its parts", NESTED + "{{ ns.x }}"),
    HostileTemplate("shared-json", "the JSON of a list that shares its parts", NESTED + "{{ ns.x | tojson }}"),
    HostileTemplate("shared-pprint", "the printed form of a list that shares its parts", NESTED + "{{ ns.x | pprint }}"),
    HostileTemplate("json-indent", "an indent of a billion", "{{ [[1]] | tojson(indent=10**9) }}"),
    HostileTemplate(
        "json-separators", "separators that are long texts", "{{ range(9999) | list | tojson(separators=('a' * 999999, 'b')) }}"
    ),
    HostileTemplate("indent", "an indent of a billion in the filter", "{{ 'a\\nb' | indent(10**9) }}"),
    HostileTemplate("slice", "a billion slices", "{{ range(9) | slice(10**9) | list }}"),
    HostileTemplate("batch-fill", "a batch filled to a billion", "{{ [1] | batch(10**9, 'a') | list }}"),
    HostileTemplate("int-bytes", "a number as a billion bytes", "{{ (1).to_bytes(10**9, 'big') }}"),
    HostileTemplate("encode", "a text in an encoding of four bytes", "{{ ('a' * 10**8).encode('utf-32') * 99 }}"),
    HostileTemplate("output", "many writes", "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}"),
    HostileTemplate("output-limit", "a text a little longer than the limit", "{{ 'a' * (8 * 1024 * 1024 + 1) }}"),
    HostileTemplate(
        "generation",
        "many writes in {% generation %}",
        "{% generation %}{% for a in range(9999) %}{{ 'a' * 99999 }}{% endfor %}{% endgeneration %}",
    ),
    HostileTemplate("error", "an error message of a billion characters", "{{ raise_exception('a' * 10**9) }}"),
    HostileTemplate(
        "error-shared", "an error message that is a list which shares its parts", NESTED + "{{ raise_exception(ns.x) }}"
    ),
    HostileTemplate("strftime", "a date with a long form", "{{ strftime_now('%Y' * 10**8) }}"),
    HostileTemplate("xmlattr", "attributes that are long texts", "{{ {'a': 'b' * 10**9} | xmlattr }}"),
    HostileTemplate(
        "filesize",
        "a number with ten million digits as the size of a file",
        "{{ (10 ** 10**7) | filesizeformat }}",
        refused=False,
    ),
    HostileTemplate(
        "translate",
        "a translation table that grows a text",
        DOUBLED + "{% set ns.x = ns.x.translate({97: 'aa'}) %}{% endfor %}{{ ns.x }}",
    ),
]
DEPTH = [
    HostileTemplate("parentheses", "2,000 parentheses", "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}"),
    HostileTemplate("parentheses-many", "100,000 parentheses", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}"),
    HostileTemplate("lists-nested", "2,000 nested lists", "{{ " + "[" * 2000 + "]" * 2000 + " }}"),
    HostileTemplate("nots", "5,000 negations", "{{ " + "not " * 5000 + "1 }}"),
    HostileTemplate("sums", "10,000 nested sums", "{{ " + "(1+" * 10_000 + "1" + ")" * 10_000 + " }}"),
    HostileTemplate("sum-long", "a sum of 20,000 numbers", "{{ " + "a+" * 20_000 + "1 }}"),
    HostileTemplate("ifs", "2,000 nested conditions", "{% if 1 %}" * 2000 + "{% endif %}" * 2000),
    HostileTemplate("fors", "100 nested loops over one number", "{% for a in [1] %}" * 100 + "{% endfor %}" * 100),
    HostileTemplate("filters", "20,000 filters", "{{ 'a'" + "|trim" * 20_000 + " }}"),
    HostileTemplate("attributes", "20,000 attributes", "{{ a" + "[0]" * 20_000 + " }}"),
    HostileTemplate("macro", "a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    HostileTemplate(
        "macro-pair",
        "two macros that call each other",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    ),
    HostileTemplate(
        "caller",
        "a macro that calls itself with a block",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
    ),
    HostileTemplate(
        "list-deep",
        "the text of a list of 99,999 levels",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    HostileTemplate(
        "json-deep",
        "the JSON of a list of 99,999 levels",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ),
    HostileTemplate(
        "self-list", "a namespace that has itself", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ [ns.x] | tojson }}"
    ),
    HostileTemplate("else-ifs", "20,000 branches of one condition", "{% if a %}" + "{% elif a %}" * 20_000 + "{% endif %}"),
    HostileTemplate("large", "a template of 16 MB", "{{ a }}" * 2_400_000),
]
SANDBOX = [
    HostileTemplate("class", "the class of a text", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    HostileTemplate("globals", "the globals of a function", "{{ raise_exception.__globals__ }}", refused=False),
    HostileTemplate("format-class", "the class of a text through str.format", "{{ '{0.__class__.__mro__}'.format(1) }}"),
    HostileTemplate("attr", "the class of a text through the filter attr", "{{ ('' | attr('__class__')).__mro__ }}"),
    HostileTemplate("import", "another file as a template", "{% include '/etc/passwd' %}"),
    HostileTemplate("extends", "another file as the base", "{% extends '/etc/passwd' %}"),
    HostileTemplate("namespace", "a private name of a namespace", "{{ namespace(__class__=1) }}"),
    HostileTemplate("mutate", "a message that is changed", "{{ messages.append(1) }}"),
    HostileTemplate("syntax", "a tag that is not closed", "{% for a in b %}"),
    HostileTemplate("unknown-tag", "a tag that does not exist", "{% do x %}"),
    HostileTemplate("unknown-filter", "a filter that does not exist", "{{ 1 | system('id') }}"),
    HostileTemplate(
        "control-characters", "an error message with an escape sequence and a line end", "{{ raise_exception('a\\n\\x1b[31mb') }}"
    ),
]
ORDINARY = [
    HostileTemplate("plain", "a template without variables", "Hello", refused=False),
    HostileTemplate("empty", "a template without content", "", refused=False),
    HostileTemplate("long-text", "a million characters", "{{ 'a' * 10**6 }}", refused=False),
    HostileTemplate("ordinary-loop", "a loop of 10,000 rounds", "{% for a in range(10000) %}{{ a }}{% endfor %}", refused=False),
    HostileTemplate(
        "ordinary-depth",
        "twenty parentheses and a macro that calls itself twenty times",
        "{{ "
        + "(" * 20
        + "1"
        + ")" * 20
        + " }}{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(20) }}",
        refused=False,
    ),
    HostileTemplate(
        "ordinary-turns",
        "the turns of a conversation",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
        refused=False,
    ),
]
TEMPLATES = (*TIME, *MEMORY, *DEPTH, *SANDBOX, *ORDINARY)
"""All of them."""
