use axum::extract::State;
use rookery_actors::search::index::{QUERY_BYTES_MAX, SuggestionKind};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::extract::{Json, Query};
use crate::problem::{self, Problem};
use crate::routes::SharedApi;
use crate::routes::page::{page_size, within};

/// What is being typed.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SuggestQuery {
    /// At most 512 bytes.
    q: String,
    /// How many, 20 unless asked otherwise.
    #[garde(custom(within(1, 100)))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

/// A completion.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Suggestion)]
pub(crate) struct SuggestionView {
    /// What to put into the search box.
    #[schema(example = "analytical")]
    text: String,
    /// What it names.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^(user|tag|word)$", example = "word")]
    kind: SuggestionKind,
}

/// Completions, the best first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Suggestions {
    items: Vec<SuggestionView>,
}

/// Complete what is being typed
#[utoipa::path(
    get,
    path = "/api/v1/search/suggest",
    tag = "Search",
    operation_id = "suggest",
    params(SuggestQuery),
    responses((status = 200, description = "Completions, the best first.", body = Suggestions))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    Query(asked): Query<SuggestQuery>,
) -> Result<Json<Suggestions>, Problem> {
    if asked.q.len() > QUERY_BYTES_MAX {
        let detail = format!("q may have at most {QUERY_BYTES_MAX} bytes");
        return Err(Problem::new(&problem::INVALID_QUERY, detail));
    }
    let suggested = api.suggest(&context, &asked.q, page_size(asked.limit)).await?;
    let items = suggested.into_iter().map(|one| SuggestionView { text: one.text, kind: one.kind }).collect();
    Ok(Json(Suggestions { items }))
}
