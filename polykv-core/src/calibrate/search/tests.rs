use super::super::score::Scale;
use super::*;

/// Text wants candidate 0 in layers 0-3, evidence candidate 1 in layers 4-7; candidate 2 is bad at both.
fn losses(picks: &[usize]) -> Losses {
    let wrong = |layers: std::ops::Range<usize>, wanted: usize| {
        picks[layers]
            .iter()
            .map(|&pick| (pick as f64 - wanted as f64).abs())
            .sum::<f64>()
    };
    Losses::from([
        (Data::Text, wrong(0..4, 0)),
        (Data::Evidence, 10.0 * wrong(4..8, 1)),
    ])
}

/// Evaluates routes one by one.
fn each(
    losses: impl Fn(&[usize]) -> ExampleLosses,
) -> impl FnMut(&[Vec<usize>]) -> Result<Vec<ExampleLosses>> {
    move |all| Ok(all.iter().map(|picks| losses(picks)).collect())
}

fn search(moves: usize) -> (FoundRoute, usize) {
    let mut runs = 0;
    let search = RouteSearch {
        candidates: 3,
        routes: vec![vec![2, 0, 2, 0, 2, 0, 2, 0]],
        moves,
        seed: 7,
    };
    let found = search.run(&mut |all| {
        runs += all.len();
        let twice = |(data, loss): (Data, f64)| (data, vec![loss; 2]);
        let of = |picks: &Vec<usize>| losses(picks).into_iter().map(twice).collect();
        Ok(all.iter().map(of).collect())
    });
    (found.unwrap(), runs)
}

#[test]
fn the_mixture_is_found_and_every_step_recorded() {
    let (found, runs) = search(100);
    assert_eq!(found.picks, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(
        found.losses,
        Losses::from([(Data::Text, 0.0), (Data::Evidence, 0.0)])
    );
    // Both are as good as the best single policy, each on its own kind.
    assert_eq!(found.score, 0.0);
    assert_eq!(found.moves.len(), runs);
    let taken: Vec<f64> = found
        .moves
        .iter()
        .filter(|one| one.taken)
        .map(|one| one.score)
        .collect();
    assert!(taken.windows(2).all(|pair| pair[1] < pair[0]) && taken.last() == Some(&0.0));
    assert_eq!(search(100).0, found);
}

#[test]
fn the_best_of_each_kind_and_then_of_both_are_tried() {
    let losses =
        |text: f64, evidence: f64| Losses::from([(Data::Text, text), (Data::Evidence, evidence)]);
    // The first is best on text only, the last on evidence only.
    let singles = [
        losses(0.0, 9.0),
        losses(5.0, 5.0),
        losses(1.0, 1.0),
        losses(2.0, 2.0),
        losses(3.0, 3.0),
        losses(4.0, 4.0),
        losses(6.0, 6.0),
        losses(9.0, 0.0),
    ];
    let tried = Scale::of(&singles).promising(&singles);
    assert_eq!(tried, [0, 7, 2, 3, 4, 5]);
}

/// Layer 0 gains 1.0 on average by candidate 1; how evenly is in `gains`.
fn mixed(gains: [f64; 4]) -> Vec<usize> {
    let search = RouteSearch {
        candidates: 2,
        routes: vec![vec![0, 0]],
        moves: 10,
        seed: 1,
    };
    let found = search.run(&mut each(|picks| {
        let of = |gain: f64| match picks {
            [1, 0] => 10.0 - gain,
            [0, 0] => 10.0,
            _ => 20.0,
        };
        ExampleLosses::from([(Data::Text, gains.map(of).to_vec())])
    }));
    found.unwrap().picks
}

#[test]
fn groups_take_parts_of_other_routes() {
    // As above, but evidence wants 0 in one of its layers: no candidate alone is right there.
    let wanted = [0, 0, 0, 0, 1, 1, 0, 1];
    let losses = |picks: &[usize]| {
        let text: f64 = picks[..4].iter().map(|&pick| [0.0, 1.0, 3.0][pick]).sum();
        let wrong = (4..8).filter(|&layer| picks[layer] != wanted[layer]);
        let evidence = wrong.count() as f64;
        ExampleLosses::from([
            (Data::Text, vec![text; 2]),
            (Data::Evidence, vec![evidence; 2]),
        ])
    };
    let search = RouteSearch {
        candidates: 3,
        routes: vec![
            vec![0, 0, 0, 0, 2, 2, 2, 2],
            // Right in the upper half, and worse as a whole.
            vec![2, 2, 2, 2, 1, 1, 0, 1],
        ],
        moves: 12,
        seed: 7,
    };
    let found = search.run(&mut each(&losses)).unwrap();
    assert_eq!(found.picks, wanted);
    assert_eq!(found.routes, search.routes);
    let half = |one: &Move| (one.layers.to_string(), one.source);
    let taken = found.moves.iter().filter(|one| one.taken).map(half);
    let taken: Vec<_> = taken.collect();
    assert!(
        taken.contains(&("4-7".into(), Source::Route(1))),
        "{taken:?}"
    );
}

#[test]
fn a_screening_finds_layers_that_lie_apart() {
    // Evidence wants 1 in every other layer, text 0 in the others: no group of neighbours gains by either.
    let losses = |picks: &[usize]| {
        let wrong = |first: usize, wanted: usize| {
            let half = picks.iter().skip(first).step_by(2);
            half.filter(|&&pick| pick != wanted).count() as f64
        };
        ExampleLosses::from([
            (Data::Text, vec![wrong(0, 0); 2]),
            (Data::Evidence, vec![wrong(1, 1); 2]),
        ])
    };
    let run = |moves: usize| {
        let search = RouteSearch {
            candidates: 3,
            routes: vec![vec![2; 8]],
            moves,
            seed: 7,
        };
        search.run(&mut each(&losses)).unwrap()
    };
    let needed = Design::runs(8) + PARTS;
    let found = run(needed);
    assert_eq!(found.picks, [0, 1, 0, 1, 0, 1, 0, 1]);
    let last = found.moves.iter().rfind(|one| one.taken).unwrap();
    assert_eq!(last.layers.to_string(), "1,3,5,7");
    // With one less there is no screening: all moves are of neighbours.
    let moves = run(needed - 1).moves;
    assert!(moves.iter().all(|one| one.layers.0.len() == 1));
}

#[test]
fn a_gain_within_the_noise_is_left() {
    assert_eq!(mixed([1.0, 1.1, 0.9, 1.0]), [1, 0]);
    // The same mean, with a standard error of 3.5.
    assert_eq!(mixed([7.0, -5.0, 7.0, -5.0]), [0, 0]);
}

#[test]
fn the_error_is_that_of_the_paired_mean() {
    let scale = Scale(vec![(Data::Text, 0.0, 2.0)]);
    let of = |losses: [f64; 4]| ExampleLosses::from([(Data::Text, losses.to_vec())]);
    let (a, b) = (of([5.0, 8.0, 1.0, 4.0]), of([4.0, 6.0, 0.0, 2.0]));
    // Differences 1, 2, 1, 2: deviation √(1/3), over √4, in units of 2.
    let wanted = (1.0f64 / 3.0).sqrt() / 2.0 / 2.0;
    assert!((scale.error(&a, &b) - wanted).abs() < 1e-12);
    assert_eq!(scale.error(&a, &a), 0.0);
}

#[test]
fn moves_are_limited() {
    let (found, runs) = search(2);
    assert_eq!((found.moves.len(), runs), (6, 6));
    let (found, runs) = search(0);
    // Candidates 0 and 1 alone are equally good, and better than the start.
    assert_eq!((found.picks, runs), (vec![0; 8], 4));
}

#[test]
fn groups_cover_all_layers_at_each_size() {
    let all = groups(6, &mut 1);
    assert_eq!(all.iter().map(LayerRange::count).sum::<usize>(), 18);
    let sizes: Vec<usize> = all.iter().map(LayerRange::count).collect();
    assert_eq!(sizes[..2], [3, 3]);
    assert_eq!(sizes[6..], [1; 6]);
    assert!(groups(1, &mut 1).is_empty());
}
