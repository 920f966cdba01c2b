//! Checks that several parts of a config share.

use polykv_core::{Error, Result};

/// The longest context that a config may state, in tokens.
pub(super) const MAX_POSITIONS: usize = 1 << 26;

pub(super) fn check_size(place: &str, field: &str, found: usize, most: usize) -> Result<()> {
    if found == 0 || found > most {
        return Err(Error::invalid(place, field, found, format!("1 to {most}")));
    }
    Ok(())
}

/// Called before anything is made per layer, too.
pub(crate) fn check_layers(place: &str, found: usize) -> Result<()> {
    check_size(place, "num_hidden_layers", found, 1024)
}

pub(super) fn check_tokens(place: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) else {
        return Ok(());
    };
    let allowed = format!("below vocab_size, {vocab_size}");
    let field = "bos_token_id or eos_token_id";
    Err(Error::invalid(place, field, id, allowed))
}

pub(super) fn check_positive(place: &str, field: &str, found: f64, most: f64) -> Result<()> {
    // Written so that NaN fails too.
    if !(found > 0.0 && found <= most) {
        let allowed = format!("above 0, up to {most}");
        return Err(Error::invalid(place, field, found, allowed));
    }
    Ok(())
}
