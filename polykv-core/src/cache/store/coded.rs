//! Entries in codes.

use super::{Store, Vectors};
use crate::codes::Codes;
use crate::ops::coded::{Channels, CodedEntries};
use burn::tensor::{DType, Int, Tensor};

impl Store {
    /// The same for entries in codes.
    pub fn of_codes(entries: CodedEntries, positions: Tensor<3, Int>, capacity: usize) -> Self {
        let len = positions.dims()[2];
        let channels = entries.keys.channels.clone();
        let mut store = Self {
            vectors: Vectors::Codes(entries.into()),
            positions,
            len,
            channels,
            prefix: None,
        };
        if capacity > len {
            store.resize(capacity);
        }
        store
    }

    /// Keys and values in codes, free slots included, if they are in codes.
    pub fn codes(&self) -> Option<&CodedEntries> {
        match &self.vectors {
            Vectors::Floats(_) => None,
            Vectors::Codes(coded) => Some(coded),
        }
    }

    /// Takes what keys are coded relative to from the keys that are held, unless earlier ones were enough.
    pub fn measure_channels(&mut self) {
        let settled = self.channels.as_ref().is_some_and(Channels::are_settled);
        if !settled && self.len > 0 {
            self.channels = Some(Channels::of(self.keys()));
        }
    }

    /// Brings keys and values into codes.
    pub fn code(&mut self, codes: Codes) {
        self.own();
        if self.channels.is_none() {
            self.measure_channels();
        }
        let positions = self.positions();
        let (Vectors::Floats(both), Some(channels)) = (&mut self.vectors, &self.channels) else {
            return;
        };
        let both = both.each_mut().map(Tensor::extract);
        let coded = CodedEntries::of(both, &positions, codes, channels.clone());
        self.vectors = Vectors::Codes(coded.into());
    }

    /// Brings keys and values back into floats of this type.
    pub fn decode(&mut self, dtype: DType) {
        if let Vectors::Codes(coded) = &self.vectors {
            let all = self.capacity();
            let both = [coded.keys(all), coded.values(all)];
            self.vectors = Vectors::Floats(both.map(|all| all.cast(dtype)));
        }
    }
}
