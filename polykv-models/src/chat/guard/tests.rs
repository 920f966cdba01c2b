use super::*;

fn rewritten(source: &str) -> String {
    rewrite(source).unwrap()
}

#[test]
fn values_are_weighed_before_anything_walks_them() {
    for (source, wanted) in [
        ("{{ a }}", "{{ a|__limit }}"),
        ("{{ 'a' + \"b\" }}", "{{ ('a' + 'b')|__limit }}"),
        (
            "{{ a ~ 'b' ~ c.d[0] }}",
            "{{ (a|__limit ~ 'b' ~ c.d[0]|__limit)|__limit }}",
        ),
        ("{{- a == b -}}", "{{- (a|__limit == b|__limit)|__limit -}}"),
        (
            "{{ a not in b }}",
            "{{ (a|__limit not in b|__limit)|__limit }}",
        ),
        (
            "{{ a|join(', ')|trim }}",
            "{{ a|__limit|join(', ')|__limit|trim|__limit }}",
        ),
        (
            "{{ a.b.strip(c) }}",
            "{{ (a.b|__limit).strip(c|__limit)|__limit }}",
        ),
        (
            "{{ f(a, b=[c], *d) }}",
            "{{ f(a|__limit, b=[c]|__limit, *d|__limit)|__limit }}",
        ),
        (
            "{{ a % (b, c) }}",
            "{{ a|__limit|__modulo(((b, c,))|__limit)|__limit }}",
        ),
        ("{{ {a: [b]} }}", "{{ {a|__limit: [b]}|__limit }}"),
        ("{{ a[b:] [1:-1] }}", "{{ a[b:][1:-1]|__limit }}"),
        ("{% set x = a, b %}", "{% set x = (a, b,)|__limit %}"),
        ("{% set n.x = a %}", "{% set n.x = (a)|__store %}"),
        (
            "{% for a, b in c.items() if d %}",
            "{% for a,b in (c|__limit).items()|__limit if d %}",
        ),
        (
            "{% if not a is divisibleby 3 %}",
            "{% if not a|__limit is divisibleby(3) %}",
        ),
        ("{% macro m(a, b=[c]) %}", "{% macro m(a, b=[c]|__limit) %}"),
        (
            "{% generation %}x{% endgeneration %}",
            "{% with %}x{% endwith %}",
        ),
        ("{{ (a|first).b }}", "{{ (a|__limit|first).b|__limit }}"),
        ("{% raw %}\na{% endraw %}", "{% raw %}\n\na{% endraw %}"),
        (
            "{% raw %}{{ a ~ b }}{% endraw %}",
            "{% raw %}{{ a ~ b }}{% endraw %}",
        ),
        ("a{# {{ b }} -#} c", "a{# -#} c"),
        ("a\r\nb\rc", "a\nb\nc"),
        (
            "{{ '\\u00e9\\x41\\n\\q' 'b\\'' }}",
            "{{ '\u{E9}A\n\\\\qb\\'' }}",
        ),
    ] {
        assert_eq!(rewritten(source), wanted, "{source}");
    }
}

#[test]
fn syntax_is_bounded() {
    let many = |part: &str| part.repeat(100_000);
    for source in [
        format!("{{{{ {}a{} }}}}", many("("), many(")")),
        format!("{{{{ {}a{} }}}}", many("["), many("]")),
        format!("{{{{ {}a }}}}", many("not ")),
        format!("{{{{ {}a }}}}", many("-")),
        format!("{{{{ a{} }}}}", many("+a")),
        format!("{{{{ a{} }}}}", many(".a")),
        format!("{{{{ a{} }}}}", many("|e")),
        format!("{{{{ a{} }}}}", many("[0]")),
        format!("{{{{ a{} }}}}", many(" if a else a")),
        format!("{{{{ {} }}}}", "a if a else ".repeat(100) + "a"),
        many("{% if a %}"),
        format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}")),
        format!("{{% set {}a = 1 %}}", many("(")),
    ] {
        let start = std::time::Instant::now();
        assert!(rewrite(&source).is_err());
        assert!(start.elapsed().as_secs() < 2);
    }
}

#[test]
fn what_is_no_jinja() {
    for source in [
        "{{",
        "{{ a",
        "{% if a",
        "{# a",
        "{{ 'a }}",
        "{{ a b }}",
        "{{ a | }}",
        "{{ ! }}",
        "{{ a) }}",
        "{% a %}",
        "{% set = 1 %}",
        "{{ '\\ud800' }}",
        "{{ '\\N{DASH}' }}",
        "{% include 'a' %}",
        "{{ \u{E9} }}",
        "{% %}",
        "{{ }}",
    ] {
        assert!(rewrite(source).is_err(), "{source}");
    }
    assert!(rewrite("a\n\n{{ ) }}").unwrap_err().contains("line 3"));
}
