"""Writes helpers.json: what Jinja makes of small templates when it is set up as transformers sets it up. Needs Jinja2 3.1.

    python helpers_reference.py > helpers.json
"""

import datetime
import json

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "messages": [
        {"role": "user", "content": " <Hi> & 'you' "},
        {"role": "assistant", "content": "é\t\"€\" 😀\u007f\n\\"},
        {"role": "user", "content": "end", "items": [1, 2.0, 1e20, 1e-7, 0.1, -0.0, 1e16, 123456789012345.6, None, True, {}, []]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"z": {"b": 1, "a": [2]}, "items": {"type": "string"}}}}],
    "flag": False,
}

TEMPLATES = [
    # tojson
    "{{ tools | tojson }}",
    "{{ tools | tojson(indent=2) }}",
    "{{ tools[0] | tojson(indent='\t', sort_keys=true) }}",
    "{{ tools | tojson(separators=(',', ':')) }}",
    "{{ tools | tojson(separators=[';', '='], indent=0) }}",
    "{{ messages | tojson }}",
    "{{ messages | tojson(ensure_ascii=true) }}",
    "{{ messages[2]['items'] | tojson }}",
    "{{ messages[2]['items'] | tojson(indent=4) }}",
    "{{ {'b': 1, 'a': {'d': none, 'c': flag}, 3: 4} | tojson }}",
    "{{ (1, 'two') | tojson }} {{ '' | tojson }} {{ [] | tojson(indent=1) }} {{ {} | tojson }}",
    # Methods of Python, also where a key has the name of one.
    "{{ messages[0].content.strip() }}|{{ messages[0]['content'].lstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xxaxx'.rstrip('x') }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a</t>b'.split('</t>')[-1] }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'bc')) }} {{ 'aXb'.lower() }} {{ 'é'.upper() }} {{ 'ab cd'.title() }}",
    "{{ 'a-b'.replace('-', '+') }} {{ 'abcb'.find('b') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.count('b') }} {{ '-'.join(['a', 'b']) }}",
    "{{ '42'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.capitalize() }} {{ '{} and {}'.format(1, 'x') }} {{ 'a\nb'.splitlines() }}",
    "{% for k, v in tools[0].function.parameters.items() %}{{ k }}={{ v }};{% endfor %}",
    "{{ tools[0].function.parameters.keys() | list }} {{ tools[0].get('none', 'd') }} {{ tools[0].get('none') }}",
    "{% for v in tools[0].function.values() %}{{ v }};{% endfor %}",
    "{{ messages[2].get('items') | length }} {{ messages[2]['items'][0:2] }} {{ messages[::-1][0].role }}",
    # Control of loops, neighbours, space, blocks of their own.
    "{% for m in messages %}{% if m.role == 'assistant' %}{% continue %}{% endif %}{{ loop.index }}{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if loop.nextitem }} {{ loop.last }},{% endfor %}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n{%- if true %}\n d{% endif +%}\n\ne\n",
    "{% for m in messages %}\n  {% if m.role == 'user' %}\nU\n  {%- else -%}\n  A  \n  {%- endif %}\n\n{% endfor %}\n",
    "{# note #}\n{{ 'x' }}\n\n{% set a = 'b' %}\n{{ a }}\n",
    "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.seen }}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{{ strftime_now('%d %b %Y') }}",
    "{% macro f() %}{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j') }}{% endmacro %}{{ f() }}",
    "{% set kept %}<{{ 'k' }}>{% endset %}{{ kept | upper }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.role }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}\n{% endfor %}",
    "{% filter upper %}abc{% endfilter %}{% with x = 1 %}{{ x }}{% endwith %}{% raw %}{{ x }}{% endraw %}",
    # What is printed, compared, tested and filtered.
    "{{ none }} {{ true }} {{ 1.0 }} {{ 2 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 2 ** 3 }} {{ undefined_name }} {{ [1, 'a', none] }} {{ {'a': True} }}",
    "{{ messages[0].nothing is defined }} {{ messages[0].nothing or 'else' }} {{ messages[0].nothing is none }} {{ not messages[0].nothing }}",
    "{{ messages is sequence }} {{ messages[0] is mapping }} {{ 'a' is string }} {{ 'a' is iterable }} {{ 1 is number }} {{ 1.5 is integer }} {{ flag is boolean }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }} {{ messages | rejectattr('name') | list | length }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | first | length }} {{ (messages | last).role }} {{ ['b', 'A'] | sort }}",
    "{{ {'b': 1, 'A': 2, 'é': 3, 'Z': 4} | dictsort }} {{ {'b': 1, 'A': 2} | items | list }} {{ [3, 1] | max }} {{ 'a' in {'a': 1} }} {{ 'x' not in 'abc' }}",
    "{{ ' t ' | trim }}|{{ 'a\nb' | indent(2) }}|{{ 'x' | default('d') }}|{{ nope | default('d') }}|{{ '' | default('d', true) }}|{{ 'ab' | length }}|{{ 'a' ~ 1 ~ none }}",
    "{{ '%s-%d' | format('a', 3) }} {{ '3' | int + 1 }} {{ 'a' * 3 }} {{ range(3) | list }} {{ [1, 2] + [3] }} {{ '<' | e }} {{ 'x' | upper | lower }} {{ [1, 1, 2] | unique | list }}",
    "{{ messages[-1].role }} {{ messages[0]['role'] == 'user' and messages | length > 2 }} {{ 'yes' if flag else 'no' }}{{ 'never' if flag }}",
    "{{ messages[1:] | length }} {{ 'abc'[1] }} {{ 'abc'[::-1] }} {{ 'abc'[-2:] }} {{ 1 == 1.0 }} {{ [] == [] }} {{ 'a' < 'b' }} {{ 5 is divisibleby 5 }} {{ 'x' is in ['x'] }}",
]


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = tojson
# The instant that the tests give.
instant = datetime.datetime.fromtimestamp(1_750_000_000, datetime.timezone.utc)
environment.globals["strftime_now"] = instant.strftime
cases = [{"template": text, "prompt": environment.from_string(text).render(**CONTEXT)} for text in TEMPLATES]
print(json.dumps({"context": CONTEXT, "cases": cases}, indent=1, ensure_ascii=False))
