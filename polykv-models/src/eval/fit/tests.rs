use super::*;
use crate::LoadedModel;
use crate::testing::tiny;
use crate::tokenizer::Tokenizer;

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
fn what_is_too_long_loses_its_middle() {
    let model = tiny(512);
    let context: String = (0..60).map(|i| format!("[{i}]")).collect();
    let parts = Parts {
        context: &context,
        question: "?!",
        lead_in: &[],
    };
    let ids = model
        .tokenizer
        .encode(&format!("{context}?!"), Specials::AsText);
    let ids = ids.unwrap();
    assert!(ids.len() > 150, "{}", ids.len());
    let limits = |text, all| Limits { text, all };
    for raw in [false, true] {
        let frame = frame(&model, raw, false);
        // Long enough: nothing is lost.
        let whole = frame.fit(parts, limits(None, 500)).unwrap();
        assert_eq!(whole, frame.encode(parts).unwrap());
        assert_eq!(
            frame.fit(parts, limits(Some(ids.len()), 500)).unwrap(),
            whole
        );
        // A limit on the text: its first and last half, and the template around them.
        let cut = frame.fit(parts, limits(Some(100), 500)).unwrap();
        assert!(cut.truncated);
        let begin = model.tokenizer.start().len();
        let (first, last) = (&ids[..50 - begin], &ids[ids.len() - 50..]);
        let kept = format!("{}{}", text(&model, first), text(&model, last));
        assert!(text(&model, &cut.prompt).contains(&kept), "{kept}");
        // A limit on everything: the template takes its part of it.
        let cut = frame.fit(parts, limits(None, 100)).unwrap();
        assert!(cut.truncated && (90..=100).contains(&cut.prompt.len()));
        assert!(text(&model, &cut.prompt).contains("[0][1]"));
        assert!(text(&model, &cut.prompt).contains("[59]?!"));
        // The question stays whole after the text.
        let after = Frame {
            question_after: true,
            ..frame
        };
        let cut = after.fit(parts, limits(Some(100), 500)).unwrap();
        assert!(cut.truncated && text(&model, &cut.after).starts_with("?!"));
        let long = Parts {
            context: "short",
            question: &context,
            lead_in: &[],
        };
        let message = after.fit(long, limits(Some(100), 500)).unwrap_err();
        assert!(
            message.to_string().contains("half of the prompt's limit"),
            "{message}"
        );
        let message = frame.fit(parts, limits(None, 1)).unwrap_err().to_string();
        assert!(message.contains("room is"), "{message}");
    }
}

/// A file may ask for more begin tokens than the text has tokens.
#[test]
fn begin_tokens_may_be_most_of_a_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let begin = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "decoder": null,
        "added_tokens": [{"id": 2, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2}, "merges": []},
        "post_processor": {"type": "TemplateProcessing", "single": [begin, text("A")], "pair": [text("A"), text("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": vec![2; 30], "tokens": vec!["<s>"; 30]}}},
    });
    std::fs::write(&path, file.to_string()).unwrap();
    let mut model = tiny(512);
    model.tokenizer = Tokenizer::from_json_file(&path).unwrap();
    assert_eq!(model.tokenizer.start().len(), 30);
    let parts = Parts {
        context: "abab",
        question: "",
        lead_in: &[],
    };
    for all in [31, 20, 4, 1] {
        let limits = Limits { text: None, all };
        match frame(&model, true, false).fit(parts, limits) {
            Ok(framed) => assert!(framed.prompt.len() <= all && framed.truncated, "{framed:?}"),
            Err(error) => assert!(error.is_refusal(), "{error}"),
        }
    }
}
