use super::*;
use crate::testing::tiny;

fn text(model: &LoadedModel, ids: &[u32]) -> String {
    model.tokenizer.decode(ids, true).unwrap()
}

fn frame(model: &LoadedModel, raw: bool, question_after: bool) -> Frame<'_> {
    Frame {
        model,
        raw,
        question_after,
    }
}

#[test]
fn the_question_is_among_the_tokens_or_after_them() {
    let model = tiny(512);
    let parts = Parts {
        context: "The lamp is lit.",
        question: "\n\nIs it?",
        lead_in: &[7, 8],
    };
    for raw in [false, true] {
        let inside = frame(&model, raw, false).encode(parts).unwrap();
        let after = frame(&model, raw, true).encode(parts).unwrap();
        assert!(inside.after.is_empty());
        assert_eq!([&after.prompt[..], &after.after].concat(), inside.prompt);
        assert!(inside.prompt.ends_with(&[7, 8]));
        let compressed = text(&model, &after.prompt);
        assert!(compressed.ends_with("lit."), "{compressed}");
        assert_eq!(frame(&model, raw, false).has_template(), !raw);
    }
}
