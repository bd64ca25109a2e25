//! Commands that do the same to each of several: one that is refused leaves the others to be done.

use super::Failure;

/// Acts on each, in their order. Of several, one that is refused is told at once with its id, and the command ends with
/// the exit code of the first.
pub(super) async fn each(
    ids: Vec<String>,
    mut act: impl AsyncFnMut(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if ids.len() < 2 {
        for id in ids {
            act(id).await?;
        }
        return Ok(());
    }
    let mut code = None;
    for id in ids {
        if let Err(failure) = act(id.clone()).await {
            let told = Failure { code: failure.code, message: format!("{id}: {}", failure.message) };
            told.report();
            code.get_or_insert(told.code);
        }
    }
    code.map_or(Ok(()), |code| Err(Failure { code, message: String::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_is_refused_leaves_the_others_to_be_done() {
        let mut done = Vec::new();
        let ended = each(["a", "bad", "b", "worse"].map(str::to_owned).to_vec(), async |id| {
            match id.as_str() {
                "bad" => return Err(Failure::usage("is bad")),
                "worse" => return Err(Failure::internal("is worse")),
                _ => done.push(id),
            }
            Ok(())
        });
        assert_eq!(ended.await, Err(Failure { code: 64, message: String::new() }));
        assert_eq!(done, ["a", "b"]);
        let alone = each(vec!["bad".to_owned()], async |_| Err(Failure::usage("is bad"))).await;
        assert_eq!(alone, Err(Failure::usage("is bad")));
    }
}
