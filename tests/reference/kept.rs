use polykv::KvCache;

/// Kept positions per KV head of a layer, ascending.
pub fn kept(cache: &KvCache, layer: usize) -> Vec<Vec<usize>> {
    let positions = cache.layers()[layer].positions().unwrap();
    let [_, heads, entries] = positions.dims();
    let values: Vec<i64> = positions.try_into_vec_as().unwrap();
    (0..heads)
        .map(|head| {
            let mut sorted: Vec<usize> = values[head * entries..][..entries]
                .iter()
                .map(|&p| p as usize)
                .collect();
            sorted.sort_unstable();
            sorted
        })
        .collect()
}
