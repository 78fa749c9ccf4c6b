"""Templates that take time or memory without end, and some that take much of either and end."""

DOUBLING = "{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
SHARED = "{% set n = namespace(a=[1], b=[1]) %}" + DOUBLING
TUPLES = "{% set n = namespace(a=(1,)) %}{% for i in range(3000) %}{% set n.a = (n.a,) %}{% endfor %}"

SPENDERS = {
    "long range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loop filter": "{% for i in range(100000) %}{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(9999) %}{% for j in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endfor %}",
    "macro output": "{% macro m() %}{% for i in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endmacro %}{{ m() }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching": "{% macro m(x) %}{% if x %}{{ m(x - 1) }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "text product": "{{ 'a' * 10 ** 12 }}",
    "text product, constant": "{{ 'a' * 1000000000000 }}",
    "list product": "{{ ([1] * 10 ** 9)|length }}",
    "text sum": "{% set n = namespace(a='aaaa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "list sum": "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "power": "{{ 2 ** (10 ** 9) }}",
    "number product": "{% set n = namespace(a=9) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "shared, printed": SHARED + "{{ n.a }}",
    "shared, as JSON": SHARED + "{{ n.a|tojson }}",
    "shared, compared": SHARED + "{{ n.a == n.b }}",
    "shared, tested": SHARED + "{{ n.a is eq(n.b) }}",
    "shared, sought": SHARED + "{{ n.a in [n.b] }}",
    "deep key": TUPLES + "{{ {n.a: 1} }}",
    "deep call": TUPLES + "{{ n.a() }}",
    "held slices": "{% set n = namespace(l=[], s='a' * 9999999) %}{% for i in range(999) %}"
    "{% set n.l = n.l + [n.s[1:]] %}{% endfor %}",
    "held literals": "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = n.l + [["
    + "0," * 5000
    + "]] %}{% endfor %}",
    "slow method": "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% set x = s.count('ab') %}{% endfor %}",
    "replace": "{% set s = 'a' * 999999 %}{{ s.replace('', s) }}",
    "replace filter": "{% set s = 'a' * 999999 %}{{ s|replace('a', s) }}",
    "join": "{% set s = 'a' * 99999 %}{{ s.join(s) }}",
    "indent": "{{ ('a\n' * 99999)|indent(999999) }}",
    "JSON indent": "{{ [1]|tojson(indent=999999999) }}",
    "round": "{{ 5|round(10 ** 9, 'floor') }}",
    "width, %": "{{ '%1000000000d' % 1 }}",
    "width, format": "{{ '{:1000000000d}'.format(1) }}",
    "sum filter": "{{ ([[1] * 1000] * 1000)|sum(start=[])|length }}",
    "escapes": "{% set n = namespace(a='\"') %}{% for i in range(60) %}{% set n.a = n.a|tojson %}{% endfor %}",
    "operator chain": "{{ 1" + " + 1" * 2000 + " }}",
    "parentheses": "{{ " + "(" * 9999 + " }}",
    "brackets": "{{ " + "[" * 9999 + "]" * 9999 + " }}",
    "nested ifs": "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "nested fors": "{% for x in [1] %}" * 21 + "{% endfor %}" * 21,
}

# These end by themselves, within the limits.
HEAVY = {
    "captured output": "{% set x %}{% for i in range(9999) %}" + "a" * 5000 + "{% endfor %}{% endset %}",
    "deep index": TUPLES + "{{ {}[n.a] }}",
    "deep get": TUPLES + "{{ {}.get(n.a) }}",
    "deep unique": TUPLES + "{{ [n.a]|unique }}",
    "split": "{{ ('a' * 9999999).split('a')|length }}",
    "split lines": "{{ ('\n' * 9999999).splitlines()|length }}",
    "characters": "{{ ('a' * 9999999)|list|length }}",
    "strip": "{% set s = 'ab' * 4999999 %}{{ s.strip(s) }}",
    "JSON separators": "{{ [1, 2]|tojson(separators=('a' * 999999, 'b')) }}",
    "width, time": "{{ strftime_now('%1000000000d') }}",
    "digits": "{{ ('9' * 9999999)|int }}",
}
