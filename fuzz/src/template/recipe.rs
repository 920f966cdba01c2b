//! A template in the grammar of Jinja2, of names, filters, tests and methods that exist and mostly fit the values that they
//! are used on, with a few faults.

use super::super::Draw;
use super::words::*;

/// Statements and expressions within one another.
const DEPTH: usize = 5;

/// The template.
pub fn source(draw: &mut Draw<'_>) -> String {
    let mut writer = Writer {
        draw,
        out: "{% set ns = namespace(n=0, x='') %}".to_owned(),
        depth: 0,
        loops: 0,
    };
    let count = 2 + writer.draw.below(6);
    writer.statements(count);
    let mut out = writer.out;
    for _ in 0..draw.faults() {
        spoil(draw, &mut out);
    }
    out
}

struct Writer<'d, 'r> {
    draw: &'d mut Draw<'r>,
    out: String,
    depth: usize,
    /// Loops over messages that are open.
    loops: usize,
}

impl Writer<'_, '_> {
    fn statements(&mut self, count: usize) {
        for _ in 0..count {
            self.statement();
        }
    }

    fn tag(&mut self, inside: &str) {
        let (open, close) = match self.draw.below(8) {
            5 => ("{%-", "-%}"),
            6 => ("{%+", "%}\n"),
            7 => ("  {%", "-%}\r\n"),
            _ => ("{%", "%}"),
        };
        self.out += &format!("{open} {inside} {close}");
    }

    fn print(&mut self, value: &str) {
        self.out += &format!("{{{{ {value} }}}}");
    }

    fn block(&mut self, head: &str, end: &str) {
        self.tag(head);
        self.depth += 1;
        let count = 1 + self.draw.below(3);
        self.statements(count);
        self.depth -= 1;
        self.tag(end);
    }

    fn statement(&mut self) {
        let which = match self.depth < DEPTH {
            true => self.draw.below(24),
            false => self.draw.below(4),
        };
        match which {
            0 => self.out += &self.draw.text().replace(['{', '}'], ""),
            1 | 2 => {
                let value = self.text();
                self.print(&value);
            }
            3 => {
                let value = self.any();
                self.print(&value);
            }
            4..=6 => self.over("for m in messages"),
            7 => {
                let head = format!("for m in messages if {}", self.condition());
                self.over(&head);
            }
            8 => {
                let head = format!("for i in {}", self.list());
                self.block(&head, "endfor");
            }
            9 => self.block("for i in [1, 2] recursive", "endfor"),
            10..=12 => self.branches(),
            13 | 14 => {
                let target = self.draw.pick(&["x", "ns.x", "ns.n", "x, y"]);
                let value = match target {
                    "ns.n" => self.number(),
                    "x, y" => format!("{}, {}", self.text(), self.any()),
                    _ => self.text(),
                };
                self.tag(&format!("set {target} = {value}"));
            }
            15 => {
                let head = self.draw.pick(&["set x", "set x | upper", "set x | trim"]);
                self.block(head, "endset");
            }
            16 => {
                self.block("macro f(m, x=1)", "endmacro");
                let argument = self.any();
                self.print(&format!("f({argument})"));
            }
            17 => {
                let head = format!("filter {}", self.draw.pick(&TEXT_FILTERS));
                self.block(&head, "endfilter");
            }
            18 => {
                let head = format!("with x = {}, y = {}", self.text(), self.any());
                self.block(&head, "endwith");
            }
            19 => self.block("generation", "endgeneration"),
            20 => {
                let texts = [
                    "{% raw %}{{ x }}{% endraw %}",
                    "{#- c -#}",
                    "{% raw -%} { {%- endraw +%}\r\n",
                    "{# {% if %} #}",
                ];
                self.out += self.draw.pick(&texts);
            }
            21 if self.loops > 0 => {
                let head = self.draw.pick(&["break", "continue"]);
                self.tag(head);
            }
            22 => {
                let values = [
                    "strftime_now('%d %b %Y')",
                    "raise_exception('no') if tools else ''",
                    "dict(a=1, b=x)",
                ];
                let value = self.draw.pick(&values);
                self.print(value);
            }
            _ => {
                self.tag("macro g()");
                self.print("caller()");
                self.tag("endmacro");
                self.block("call g()", "endcall");
            }
        }
    }

    /// A loop over messages.
    fn over(&mut self, head: &str) {
        self.loops += 1;
        self.block(head, "endfor");
        self.loops -= 1;
    }

    fn branches(&mut self) {
        let head = format!("if {}", self.condition());
        self.tag(&head);
        self.depth += 1;
        self.statement();
        if self.draw.flag() {
            let head = format!("elif {}", self.condition());
            self.tag(&head);
            self.statement();
        }
        if self.draw.flag() {
            self.tag("else");
            self.statement();
        }
        self.depth -= 1;
        self.tag("endif");
    }

    /// An expression of one level more.
    fn inner(&mut self, make: fn(&mut Self) -> String) -> String {
        self.depth += 1;
        let made = make(self);
        self.depth -= 1;
        made
    }

    fn any(&mut self) -> String {
        match self.draw.below(6) {
            0 | 1 => self.text(),
            2 => self.list(),
            3 => self.number(),
            4 => self.condition(),
            _ => format!("{{'a': {}, 'b': {}}}", self.text(), self.number()),
        }
    }

    fn text(&mut self) -> String {
        let which = match self.depth < DEPTH {
            // What does not fit, too.
            true if self.draw.rarely() => return self.inner(Self::any),
            true => self.draw.below(12),
            false => self.draw.below(2),
        };
        match which {
            0 if self.loops > 0 => self.draw.pick(&TEXTS_IN_LOOP).to_owned(),
            0 | 1 => self.draw.pick(&TEXTS).to_owned(),
            2 | 3 => format!(
                "({}) | {}",
                self.inner(Self::text),
                self.draw.pick(&TEXT_FILTERS)
            ),
            4 | 5 => format!(
                "({}).{}",
                self.inner(Self::text),
                self.draw.pick(&TEXT_METHODS)
            ),
            6 => format!("({} ~ {})", self.inner(Self::text), self.inner(Self::any)),
            7 => format!("({} + {})", self.inner(Self::text), self.inner(Self::text)),
            8 => {
                let cut = self
                    .draw
                    .pick(&["[0]", "[-1]", "[1:]", "[::-1]", "[:2]", "[1:9:2]", "[-3:]"]);
                format!("({}){cut}", self.inner(Self::text))
            }
            9 => format!(
                "({} if {} else {})",
                self.inner(Self::text),
                self.inner(Self::condition),
                self.inner(Self::text)
            ),
            10 => format!("({}) | join('-')", self.inner(Self::list)),
            _ => format!("({}) | tojson", self.inner(Self::any)),
        }
    }

    fn list(&mut self) -> String {
        let which = match self.depth < DEPTH {
            true => self.draw.below(8),
            false => 0,
        };
        match which {
            0 | 1 => self.draw.pick(&LISTS).to_owned(),
            2 | 3 => format!(
                "({}) | {}",
                self.inner(Self::list),
                self.draw.pick(&LIST_FILTERS)
            ),
            4 => format!("({}).{}", self.inner(Self::text), self.draw.pick(&SPLITS)),
            5 => format!("({} + {})", self.inner(Self::list), self.inner(Self::list)),
            6 => {
                let cut = self.draw.pick(&["[1:]", "[::-1]", "[:2]", "[-1:]"]);
                format!("({}){cut}", self.inner(Self::list))
            }
            _ => format!("[{}, {}]", self.inner(Self::any), self.inner(Self::any)),
        }
    }

    fn number(&mut self) -> String {
        let which = match self.depth < DEPTH {
            true => self.draw.below(9),
            false => 0,
        };
        match which {
            0 if self.loops > 0 => self
                .draw
                .pick(&["loop.index", "loop.index0", "loop.length", "loop.revindex"])
                .to_owned(),
            0 | 1 => self.draw.pick(&NUMBERS).to_owned(),
            2 | 3 => {
                let sign = self.draw.pick(&["+", "-", "*", "/", "//", "%", "**"]);
                format!(
                    "({} {sign} {})",
                    self.inner(Self::number),
                    self.inner(Self::number)
                )
            }
            4 => {
                let filter = self
                    .draw
                    .pick(&["abs", "int", "float", "round", "round(1)", "int(3)"]);
                format!("({}) | {filter}", self.inner(Self::number))
            }
            5 => {
                let filter = self.draw.pick(&["length", "wordcount", "count", "int"]);
                format!("({}) | {filter}", self.inner(Self::text))
            }
            6 => {
                let method =
                    self.draw
                        .pick(&["count('a')", "find('a')", "rfind('a')", "index('')"]);
                format!("({}).{method}", self.inner(Self::text))
            }
            7 => format!("-({})", self.inner(Self::number)),
            _ => {
                let filter = self.draw.pick(&["length", "sum", "max", "min"]);
                format!("[1, {}] | {filter}", self.inner(Self::number))
            }
        }
    }

    fn condition(&mut self) -> String {
        let which = match self.depth < DEPTH {
            true => self.draw.below(9),
            false => 0,
        };
        match which {
            0 | 1 => self.draw.pick(&CONDITIONS).to_owned(),
            2 | 3 => {
                let not = self.draw.pick(&["", "not "]);
                format!(
                    "({} is {not}{})",
                    self.inner(Self::any),
                    self.draw.pick(&TESTS)
                )
            }
            4 => {
                let sign = self.draw.pick(&["==", "!=", "in", "not in", "<", ">="]);
                format!(
                    "({} {sign} {})",
                    self.inner(Self::text),
                    self.inner(Self::text)
                )
            }
            5 => format!("({} in {})", self.inner(Self::any), self.inner(Self::list)),
            6 => {
                let sign = self.draw.pick(&["and", "or"]);
                format!(
                    "({} {sign} {})",
                    self.inner(Self::condition),
                    self.inner(Self::condition)
                )
            }
            7 => format!("not {}", self.inner(Self::condition)),
            _ => {
                let method = self.draw.pick(&[
                    "startswith('B')",
                    "endswith(('a', 'b'))",
                    "isdigit()",
                    "isalpha()",
                ]);
                format!("({}).{method}", self.inner(Self::text))
            }
        }
    }
}

/// Takes a part away or puts it in twice.
fn spoil(draw: &mut Draw<'_>, out: &mut String) {
    let start = draw.below(out.len().clamp(1, 1 << 16));
    let end = (start + draw.below(64)).min(out.len());
    let [start, end] = [start, end].map(|at| out.floor_char_boundary(at));
    match draw.flag() {
        true => out.replace_range(start..end, ""),
        false => {
            let twice = out[start..end].to_owned();
            out.insert_str(start, &twice);
        }
    }
}
