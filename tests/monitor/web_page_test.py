"""What all pages have around their bodies."""

from raylingvo.monitor.web_page import web_page


def test_the_title_is_text_and_the_rest_is_as_it_is_given():
    html = web_page("<b> & co", "<p>body</p>\n", style=".own { color: red; }\n", script="run();\n")
    assert html.count("&lt;b&gt; &amp; co") == 2  # the title, and the heading
    assert "<b> & co" not in html
    assert html.startswith("<!doctype html>\n")
    assert html.endswith("</h1>\n<p>body</p>\n<script>run();\n</script></body></html>\n")


def test_a_page_may_say_otherwise_than_all_pages_do():
    html = web_page("a", "", style="h1 { margin: 0; }", script="")
    assert html.index("h1 { font-size") < html.index("h1 { margin: 0; }") < html.index("</style>")
