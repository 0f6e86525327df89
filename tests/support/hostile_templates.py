"""Chat templates that attack the program which renders them, and ordinary ones that it must render."""

from typing import Any, NamedTuple


class HostileTemplate(NamedTuple):
    """A template; the name is unique and fits a file name."""

    name: str
    what: str
    """One line: what it tries."""
    content: str
    refused: bool = True
    """False if it must be rendered, without doing what it tries."""


LOOP, END = "{% for a in range(99999) %}", "{% endfor %}"
NESTED = "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
"""The beginning of a template with a list of forty levels, each of which has the level below twice."""


def doubled(step: str) -> str:
    """Return a template that takes a step forty times, which doubles a text."""
    return "{% set ns = namespace(x='a') %}{% for i in range(40) %}" + step + "{% endfor %}{{ ns.x }}"


def as_templates(*rows: tuple[Any, ...]) -> list[HostileTemplate]:
    return [HostileTemplate(*row) for row in rows]


TIME = as_templates(
    ("loops", "nested loops over ranges of 100,000 numbers", 3 * LOOP + 3 * END),
    ("loops-continue", "loops that write nothing", 3 * LOOP + "{% continue %}" + 3 * END),
    (
        "loop-condition",
        "a loop whose condition is a loop",
        "{% macro f() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}{% for a in range(99999) if f() %}x{% endfor %}",
    ),
    ("power", "a power with ten million digits", "{{ 10 ** 10000000 }}"),
    ("power-power", "a power of powers", "{{ 9 ** (9 ** (9 ** 9)) }}"),
    (
        "product",
        "a number that is squared a hundred times",
        "{% set ns = namespace(x=9) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}",
    ),
    ("constant-power", "a power that the compiler computes", "{% if 10 ** 10000000 > 1 %}x{% endif %}"),
    ("map-loops", "filters that iterate in loops", LOOP + "{{ range(99999) | map('string') | list | length }}" + END),
    ("sum-ranges", "sums of ranges in a loop", LOOP + "{{ range(99999) | sum }}" + END),
    ("sort", "sorting in a loop", LOOP + "{{ (range(99999) | sort(reverse=true))[0] }}" + END),
    ("batch", "batches of one in a loop", LOOP + "{{ range(99999) | batch(1) | list | length }}" + END),
    ("unique", "unique values in a loop", LOOP + "{{ range(99999) | unique | list | length }}" + END),
    ("compare", "comparison of two lists that share their parts", NESTED + "{% set a = ns.x %}" + NESTED + "{{ a == ns.x }}"),
    (
        "tuple-hash",
        "the hash of a tuple that shares its parts",
        NESTED.replace("[", "(").replace("]", ",)") + "{{ {ns.x: 1} | length }}",
    ),
    ("contains", "a search in a list that shares its parts", NESTED + "{{ 'b' in (ns.x | string) }}"),
    (
        "wordwrap",
        "lines of one character",
        "{% for i in range(99999) %}{{ ('ab ' * (i + 99999)) | wordwrap(1) | length }}{% endfor %}",
    ),
    (
        "urlize",
        "links in a long text",
        "{% for i in range(99999) %}{{ ('http://a.b/(' * (i + 9999)) | urlize | length }}{% endfor %}",
    ),
    (
        "striptags",
        "tags in a long text",
        "{% for i in range(99999) %}{{ ('<!--' * (i + 99999)) | striptags | length }}{% endfor %}",
    ),
    ("lipsum", "a filler text of a billion paragraphs", "{{ lipsum(n=10**9) }}"),
    ("cycler", "a loop over a cycler", "{% set c = cycler('a') %}" + 3 * LOOP + "{% set x = c.next() %}" + 3 * END),
    (
        "macro-tree",
        "a macro that calls itself twice, to a depth of 60",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ),
    (
        "recursive-loop",
        "a recursive loop over a tree that shares its parts",
        NESTED + "{% for y in ns.x recursive %}{% if y is not string %}{{ loop(y) }}{% endif %}{% endfor %}",
    ),
    ("groupby", "groups in a loop", LOOP + "{{ range(99999) | groupby('real') | length }}" + END),
)
MEMORY = as_templates(
    ("repeat", "a text of a billion characters", "{{ 'a' * 10**9 }}"),
    ("repeat-unwritten", "a text of a billion characters that is not written", "{% set x = 'a' * 10**9 %}"),
    ("repeat-list", "a list of ten billion entries", "{% set x = [0] * 10**10 %}"),
    ("repeat-tuple", "a tuple of ten billion entries", "{{ ((0,) * 10**10) | length }}"),
    ("center", "a text centred in a billion characters", "{{ 'a' | center(10**9) }}"),
    ("ljust", "a text padded to a billion characters", "{{ 'a'.ljust(10**9) }}"),
    ("rjust", "a text padded on the left", "{{ 'a'.rjust(10**9) }}"),
    ("zfill", "a text padded with zeros", "{{ 'a'.zfill(10**9) }}"),
    ("expandtabs", "a tab of a billion columns", "{{ '\\t'.expandtabs(10**9) }}"),
    ("percent", "a width of a billion with %", "{{ '%1000000000d' % 1 }}"),
    ("percent-star", "a width in an argument of %", "{{ '%*d' % (10**9, 1) }}"),
    ("percent-precision", "a precision of a billion with %", "{{ '%.1000000000f' % 1.5 }}"),
    ("format-filter", "a width of a billion in the filter format", "{{ '%1000000000s' | format('a') }}"),
    ("format-method", "a width of a billion in str.format", "{{ '{:>1000000000}'.format(1) }}"),
    ("format-nested", "a width in a nested field of str.format", "{{ '{:>{}}'.format(1, 10**9) }}"),
    ("format-map", "a width in str.format_map", "{{ '{a:>1000000000}'.format_map({'a': 1}) }}"),
    ("replace-filter", "replacements that grow a text", doubled("{% set ns.x = ns.x | replace('a', 'aa') %}")),
    ("replace-method", "replacements by a method", doubled("{% set ns.x = ns.x.replace('a', 'aa') %}")),
    ("join", "joins that grow a text", doubled("{% set ns.x = [ns.x, ns.x] | join(ns.x) %}")),
    ("join-method", "joins by a method", doubled("{% set ns.x = ns.x.join([ns.x, ns.x]) %}")),
    ("plus", "sums of texts", doubled("{% set ns.x = ns.x + ns.x %}")),
    ("tilde", "concatenations of texts", doubled("{% set ns.x = ns.x ~ ns.x %}")),
    ("capture", "captured blocks that grow", doubled("{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}")),
    ("lists", "sums of lists", "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"),
    ("shared-string", "the text of a list that shares its parts", NESTED + "{{ ns.x }}"),
    ("shared-json", "the JSON of a list that shares its parts", NESTED + "{{ ns.x | tojson }}"),
    ("shared-pprint", "the printed form of a list that shares its parts", NESTED + "{{ ns.x | pprint }}"),
    ("json-indent", "an indent of a billion", "{{ [[1]] | tojson(indent=10**9) }}"),
    ("json-separators", "separators that are long texts", "{{ range(9999) | list | tojson(separators=('a' * 999999, 'b')) }}"),
    ("indent", "an indent of a billion in the filter", "{{ 'a\\nb' | indent(10**9) }}"),
    ("slice", "a billion slices", "{{ range(9) | slice(10**9) | list }}"),
    ("batch-fill", "a batch filled to a billion", "{{ [1] | batch(10**9, 'a') | list }}"),
    ("int-bytes", "a number as a billion bytes", "{{ (1).to_bytes(10**9, 'big') }}"),
    ("encode", "a text in an encoding of four bytes", "{{ ('a' * 10**8).encode('utf-32') * 99 }}"),
    ("output", "many writes", LOOP + "{{ 'a' * 99999 }}" + END),
    ("output-limit", "a text a little longer than the limit", "{{ 'a' * (8 * 1024 * 1024 + 1) }}"),
    (
        "generation",
        "many writes in {% generation %}",
        "{% generation %}{% for a in range(9999) %}{{ 'a' * 99999 }}{% endfor %}{% endgeneration %}",
    ),
    ("error", "an error message of a billion characters", "{{ raise_exception('a' * 10**9) }}"),
    ("error-shared", "an error message that is a list which shares its parts", NESTED + "{{ raise_exception(ns.x) }}"),
    ("strftime", "a date with a long form", "{{ strftime_now('%Y' * 10**8) }}"),
    ("xmlattr", "attributes that are long texts", "{{ {'a': 'b' * 10**9} | xmlattr }}"),
    ("filesize", "a number with ten million digits as the size of a file", "{{ (10 ** 10**7) | filesizeformat }}", False),
    ("translate", "a translation table that grows a text", doubled("{% set ns.x = ns.x.translate({97: 'aa'}) %}")),
)
DEPTH = as_templates(
    ("parentheses", "2,000 parentheses", "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}"),
    ("parentheses-many", "100,000 parentheses", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}"),
    ("lists-nested", "2,000 nested lists", "{{ " + "[" * 2000 + "]" * 2000 + " }}"),
    ("nots", "5,000 negations", "{{ " + "not " * 5000 + "1 }}"),
    ("sums", "10,000 nested sums", "{{ " + "(1+" * 10_000 + "1" + ")" * 10_000 + " }}"),
    ("sum-long", "a sum of 20,000 numbers", "{{ " + "a+" * 20_000 + "1 }}"),
    ("ifs", "2,000 nested conditions", "{% if 1 %}" * 2000 + "{% endif %}" * 2000),
    ("fors", "100 nested loops over one number", "{% for a in [1] %}" * 100 + "{% endfor %}" * 100),
    ("filters", "20,000 filters", "{{ 'a'" + "|trim" * 20_000 + " }}"),
    ("attributes", "20,000 attributes", "{{ a" + "[0]" * 20_000 + " }}"),
    ("macro", "a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    (
        "macro-pair",
        "two macros that call each other",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    ),
    (
        "caller",
        "a macro that calls itself with a block",
        "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}",
    ),
    (
        "list-deep",
        "the text of a list of 99,999 levels",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    ),
    (
        "json-deep",
        "the JSON of a list of 99,999 levels",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ),
    ("self-list", "a namespace that has itself", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ [ns.x] | tojson }}"),
    ("else-ifs", "20,000 branches of one condition", "{% if a %}" + "{% elif a %}" * 20_000 + "{% endif %}"),
    ("large", "a template of 16 MB", "{{ a }}" * 2_400_000),
)
SANDBOX = as_templates(
    ("class", "the class of a text", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("globals", "the globals of a function", "{{ raise_exception.__globals__ }}", False),
    ("format-class", "the class of a text through str.format", "{{ '{0.__class__.__mro__}'.format(1) }}"),
    ("attr", "the class of a text through the filter attr", "{{ ('' | attr('__class__')).__mro__ }}"),
    ("import", "another file as a template", "{% include '/etc/passwd' %}"),
    ("extends", "another file as the base", "{% extends '/etc/passwd' %}"),
    ("namespace", "a private name of a namespace", "{{ namespace(__class__=1) }}"),
    ("mutate", "a message that is changed", "{{ messages.append(1) }}"),
    ("syntax", "a tag that is not closed", "{% for a in b %}"),
    ("unknown-tag", "a tag that does not exist", "{% do x %}"),
    ("unknown-filter", "a filter that does not exist", "{{ 1 | system('id') }}"),
    ("control-characters", "an error message with an escape sequence and a line end", "{{ raise_exception('a\\n\\x1b[31mb') }}"),
)
ORDINARY = as_templates(
    ("plain", "a template without variables", "Hello", False),
    ("empty", "a template without content", "", False),
    ("long-text", "a million characters", "{{ 'a' * 10**6 }}", False),
    ("ordinary-loop", "a loop of 10,000 rounds", "{% for a in range(10000) %}{{ a }}{% endfor %}", False),
    (
        "ordinary-depth",
        "twenty parentheses and a macro that calls itself twenty times",
        "{{ "
        + "(" * 20
        + "1"
        + ")" * 20
        + " }}{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(20) }}",
        False,
    ),
    (
        "ordinary-turns",
        "the turns of a conversation",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}{% endfor %}",
        False,
    ),
)
TEMPLATES = (*TIME, *MEMORY, *DEPTH, *SANDBOX, *ORDINARY)
"""All of them."""
