//! Templates that try to take more time, memory or stack than there is.

use super::{MAX_SOURCE_BYTES, template, user};
use proptest::prelude::*;

/// What comes of a template for one short message, and that it comes soon.
fn hostile(source: &str) -> String {
    let start = std::time::Instant::now();
    let message = match template(source).render(&user("x"), false) {
        Ok(text) => format!("{} bytes", text.len()),
        Err(error) if error.is_refusal() => error.to_string(),
        Err(error) => panic!("{error}"),
    };
    let seconds = start.elapsed().as_secs();
    assert!(seconds < 8, "{seconds} s: {source:.200}");
    message
}

#[test]
fn endless_work() {
    let loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(hostile(loops).contains("work"));
    assert!(hostile("{{ 'x' * 2000000 }}").contains("output"));
    assert!(hostile("{{ 'x' * 1000000000 }}").contains("work"));
    let growing = |grow: &str| {
        format!(
            "{{% set ns = namespace(x={grow}) %}}{{% for i in range(60) %}}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"
        )
    };
    assert!(hostile(&growing("'xxxxxxxx'")).contains("work"));
    let list = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    assert!(hostile(list).contains("too large"));
    assert!(
        hostile("{{ raise_exception('roles\nmust alternate') }}").contains("roles must alternate")
    );
    assert!(hostile("{% include 'other' %}").contains("include"));
    assert!(hostile("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    assert!(
        hostile("{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}").contains("recursion")
    );
}

#[test]
fn what_one_call_allocates() {
    for (source, says) in [
        ("{{ [1] | tojson(indent=1000000000) }}", "indent"),
        ("{{ 'a' | indent(1000000000) }}", "width"),
        ("{{ 'a' | center(1000000000) }}", "width"),
        ("{{ 'a'.ljust(1000000000) }}", "width"),
        ("{{ 'a'.zfill(1000000000) }}", "width"),
        ("{{ '%1000000000d' % 1 }}", "width"),
        ("{{ '%(a)1000000000d' % {'a': 1} }}", "width"),
        ("{{ '%*d' % (1000000000, 1) }}", "width"),
        ("{{ '%1000000000d' | format(1) }}", "width"),
        ("{{ '{:1000000000d}'.format(1) }}", "width"),
        ("{{ '{:{}d}'.format(1, 1000000000) }}", ""),
        (
            "{% set x = 'x' * 4000000 %}{{ '%(a)s' * 10000 % {'a': x} }}",
            "work",
        ),
        (
            "{% set x = 'x' * 4000000 %}{{ ('{0}' * 10000).format(x) }}",
            "work",
        ),
        ("{{ ('%(a)999d' * 1000000) % {'a': 1} }}", "work"),
        ("{{ range(1000000000) | list }}", "range"),
        ("{{ [1] | batch(1000000000, 1) | list }}", "work"),
        ("{{ [1] | slice(1000000000) | list }}", "work"),
        (
            "{% set x = 'x' * 1000000 %}{{ (range(100000) | list) | join(x) }}",
            "work",
        ),
        (
            "{% set x = 'x' * 1000000 %}{{ x.join(range(100000) | map('string')) }}",
            "work",
        ),
        (
            "{% set x = 'x' * 1000000 %}{{ x | replace('x', x) }}",
            "work",
        ),
        ("{% set x = 'x' * 1000000 %}{{ x.replace('x', x) }}", "work"),
        (
            "{% set x = 'x ' * 10000000 %}{{ x.split(' ') | length }}",
            "work",
        ),
        ("{{ ('x' * 30000000).split('x') | length }}", "work"),
        ("{{ ('x' * 30000000).rsplit('x') | length }}", "work"),
        (
            "{% set x = 'x' * 1000000 %}{{ ([x] * 1000) | tojson }}",
            "too large",
        ),
        (
            "{{ ([1] * 100000) | map('tojson') | join | length }}",
            "bytes",
        ),
        (
            "{% set x = ['x' * 9999] * 300 %}{{ x | sum(start='') | length }}",
            "",
        ),
        (
            "{% set x = 'x' * 100000 %}{{ ('\n' * 100000) | indent(x) }}",
            "work",
        ),
        ("{{ 10 ** 1000000 }}", ""),
        ("{{ strftime_now('%Y' * 1000) }}", "format"),
    ] {
        let message = hostile(source);
        assert!(message.contains(says), "{source}: {message}");
    }
}

#[test]
fn values_that_hold_themselves() {
    for source in [
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns | tojson }}",
        "{% set ns = namespace() %}{% set ns.x = {'a': (1, ns)} %}{{ ns == ns.x }}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a ~ b }}",
        "{% for i in [1] %}{% set ns = namespace() %}{% set ns.x = loop %}{{ ns }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.a, ns.b = ns, ns %}{{ ns }}",
    ] {
        assert!(
            hostile(source).contains("namespace inside a namespace"),
            "{source}"
        );
    }
    let inside = "{% set ns = namespace(a=namespace(b=1)) %}{% set ns.a.b = 2 %}{{ ns.a.b }}{{ namespace(x=ns).x.a.b }}";
    assert_eq!(template(inside).render(&user("x"), false).unwrap(), "22");
}

#[test]
fn values_that_are_deep() {
    for use_of in [
        "{{ ns.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x == [ns.x] }}",
        "{{ ns.x ~ '' }}",
        "",
    ] {
        for wrap in [
            "[ns.x]",
            "(ns.x,)",
            "{'a': ns.x}",
            "dict(a=ns.x)",
            "[ns.x] | list",
            "[ns.x][:]",
            "[ns.x] + []",
        ] {
            let source = format!(
                "{{% set ns = namespace(x=[]) %}}{{% for i in range(24000) %}}{{% set ns.x = {wrap} %}}{{% endfor %}}{use_of}"
            );
            assert!(hostile(&source).contains("nested more than 64"), "{source}");
        }
    }
    // In a row of statements, by macros, by `with`, by filters.
    let row = format!(
        "{{% set x = [] %}}{}{{{{ x }}}}",
        "{% set x = [x] %}".repeat(14_000)
    );
    assert!(hostile(&row).contains("nested more than 64"));
    let open = "[".repeat(30);
    let close = "]".repeat(30);
    let by_macro =
        format!("{{% macro f(x) %}}{{{{ f({open}x{close}) }}}}{{% endmacro %}}{{{{ f(1) }}}}");
    assert!(hostile(&by_macro).contains("nested more than 64"));
    let by_filter = format!("{{{{ [1]{} }}}}", "|batch(1)|list".repeat(300));
    assert!(hostile(&by_filter).contains("nested more than 64"));
    let by_with = format!(
        "{}{{{{ x }}}}{}",
        "{% with x = [[[x]]] %}".repeat(60),
        "{% endwith %}".repeat(60)
    );
    assert!(hostile(&by_with).contains("nested more than 64"));
    let doubling = format!(
        "{{% set x = [1] %}}{}{{{{ x ~ x == x }}}}",
        "{% set x = [x, x] %}".repeat(50)
    );
    assert!(hostile(&doubling).contains("too large"));
    let loops = format!(
        "{{% set a0 = [1] %}}{}{{{{ a60 ~ '' }}}}{}",
        (0..60)
            .map(|i| format!("{{% for a{} in [[a{i}, a{i}]] %}}", i + 1))
            .collect::<String>(),
        "{% endfor %}".repeat(60)
    );
    assert!(hostile(&loops).contains("too large"));
    let compared = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(14) %}{% set ns.x = [ns.x, ns.x] %}\
        {% set ns.y = [ns.y, ns.y] %}{% endfor %}{% for i in range(100000) %}{% if ns.x == ns.y %}{% endif %}{% endfor %}";
    assert!(hostile(compared).contains("work"));
}

#[test]
fn syntax_that_is_deep() {
    let many = |part: &str, count: usize| part.repeat(count);
    for source in [
        "{% if %}".to_owned(),
        "{{".to_owned(),
        many("{% if x %}", 20_000),
        many("x", MAX_SOURCE_BYTES + 1),
        format!("{{{{ {}x }}}}", many("(", 100_000)),
        format!("{{{{ {}x }}}}", many("not ", 50_000)),
        format!("{{{{ {}x }}}}", many("-", 200_000)),
        format!("{{{{ x{} }}}}", many("+x", 100_000)),
        format!("{{% if x %}}{}{{% endif %}}", many("{% elif x %}", 20_000)),
        format!("{{{{ x{} }}}}", many(".x", 100_000)),
    ] {
        let message = hostile(&source);
        assert!(message.contains("chat template"), "{message}");
    }
    // The most that is allowed fits the stack.
    for source in [
        many("{{x}}", 50_000),
        format!("{{{{ {}1{} }}}}", many("(", 30), many(")", 30)),
        format!("{{{{ 1{} }}}}", many("+1", 2000)),
        format!("{{{{ 'x'{} }}}}", many("~'x'", 2000)),
        format!("{{{{ 'x'{} }}}}", many("|trim", 2000)),
        format!("{{{{ messages{} }}}}", many("[0]", 1300)),
        format!("{{% if x %}}{}{{% endif %}}", many("{% elif x %}", 500)),
        format!(
            "{}x{}",
            many("{% if messages %}", 60),
            many("{% endif %}", 60)
        ),
        format!(
            "{{% macro f(n) %}}{{{{ f(n + 1) if n < 40 }}}}{{% endmacro %}}{{{{ f(0) }}}}{}",
            many("{{ f(1) }}", 10)
        ),
    ] {
        let message = hostile(&source);
        assert!(
            message.ends_with(" bytes") || message.contains("undefined"),
            "{source:.100}: {message}"
        );
    }
}

/// Templates of every construct, mostly without sense: values that are handed on, grown, nested and walked in loops.
fn wild_template() -> impl Strategy<Value = String> {
    let names = prop_oneof![
        Just("a"),
        Just("b"),
        Just("ns"),
        Just("ns.x"),
        Just("messages"),
        Just("loop"),
        Just("m")
    ];
    let leaf = prop_oneof![
        names.clone().prop_map(str::to_owned),
        Just("1".to_owned()),
        Just("99999999".to_owned()),
        Just("'x%s{}'".to_owned()),
        Just("range(70000)".to_owned()),
    ];
    let expression = leaf.prop_recursive(4, 24, 3, |inner| {
        let forms = [
            "[$]",
            "[$, $]",
            "($, $)",
            "{'k': $}",
            "$ ~ $",
            "$ + $",
            "$ * $",
            "$ % $",
            "$ == $",
            "$ in $",
            "$ if $ else $",
            "$|tojson(indent=9)",
            "$|list",
            "$|join($)",
            "$|string",
            "$|batch(3, $)",
            "$|map('string')|list",
            "$|sort",
            "$|unique",
            "$|groupby('k')",
            "$|items",
            "$|indent($)",
            "$|replace('x', $)",
            "$|sum(start=$)",
            "$|length",
            "$.split($)",
            "$.join($)",
            "$.format($, $)",
            "$.items()",
            "$[$]",
            "$[$:$]",
            "dict(k=$)",
            "namespace(x=$)",
            "f($)",
            "not $",
            "-$",
            "$|center($)",
            "$|slice(5)",
            "$|select('in', $)",
            "$|reverse",
            "$|dictsort",
            "$ ** $",
            "$ is eq $",
            "$.replace('x', $)",
            "$.partition($)",
            "caller($)",
            "loop($)",
            "loop.changed($)",
            "loop.cycle($)",
        ];
        (
            prop::sample::select(forms.to_vec()),
            prop::collection::vec(inner, 3),
        )
            .prop_map(|(form, parts)| {
                let mut parts = parts.into_iter().cycle();
                form.split('$')
                    .enumerate()
                    .fold(String::new(), |text, (at, piece)| match at {
                        0 => piece.to_owned(),
                        _ => format!("{text}({}){piece}", parts.next().unwrap_or_default()),
                    })
            })
    });
    let statement = (
        prop::sample::select(vec![
            "{{ $ }}",
            "{% set a = $ %}",
            "{% set ns.x = $ %}",
            "{% set b = $ %}",
            "{% if $ %}{{ $ }}{% endif %}",
            "{% for m in $ %}{% set ns.x = $ %}{{ $ }}{% endfor %}",
            "{% for m in $ recursive %}{{ $ }}{% endfor %}",
            "{% for m in range(99999) %}{% set ns.x = $ %}{% if $ %}{% endif %}{% endfor %}",
            "{% macro f(a) %}{{ $ }}{{ $ }}{% endmacro %}{{ $ }}",
            "{% with a = $ %}{{ $ }}{% set ns.x = $ %}{% endwith %}",
            "{% call(a) f($) %}{{ $ }}{% endcall %}",
            "{% set a %}{{ $ }}{% endset %}",
            "{% filter indent($) %}{{ $ }}{% endfilter %}",
        ]),
        prop::collection::vec(expression, 3),
    )
        .prop_map(|(form, parts)| {
            let mut parts = parts.into_iter().cycle();
            form.split('$')
                .enumerate()
                .fold(String::new(), |text, (at, piece)| match at {
                    0 => piece.to_owned(),
                    _ => format!("{text}{}{piece}", parts.next().unwrap_or_default()),
                })
        });
    prop::collection::vec(statement, 1..8).prop_map(|all| {
        let start = "{% set ns = namespace(x=[1]) %}{% set a = 'x' %}{% set b = [[1], {'k': 2}] %}";
        format!("{start}{}", all.concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a template does, it ends soon, as a text or as a refusal.
    #[test]
    fn templates_end(source in wild_template()) {
        hostile(&source);
    }
}
