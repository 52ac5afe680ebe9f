//! The book's pages, whose snippets are compiled, and run where they need no server, as documentation tests. A new page
//! is a line here and one in its `SUMMARY.md`.

macro_rules! pages {
    ($($name:ident)*) => {$(
        #[doc = include_str!(concat!("../../../docs/guide/src/", stringify!($name), ".md"))]
        mod $name {}
    )*};
}

pages! {
    api_reference command_line custom_losses data examples from_python from_tinkerbell from_tinkex futures_and_async
    getting_started sampling saving_and_loading sync_versus_async testing training_loop troubleshooting
}
