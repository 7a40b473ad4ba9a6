"""The report's page: one file, its own style, nothing from the network."""

from string import Template

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d1d1f; --soft: #63636b; --line: #dcdce0; --card: #f4f4f2;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181a; --ink: #e8e8ea; --soft: #a2a2aa; --line: #36373b; --card: #202124; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 63rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.5rem 0 1rem; padding-bottom: .4rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1.08rem; line-height: 1.35; margin: 0 0 .25rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
.soft, figcaption, small { color: var(--soft); font-size: .875rem; line-height: 1.5; }
small { display: block; font-weight: 400; }
thead small { white-space: nowrap; }
.scroll { overflow-x: auto; }
.scroll + .soft { margin-top: .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
thead th { font-weight: 600; border-bottom-color: var(--soft); line-height: 1.4;
  vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; min-width: 13rem; white-space: normal; overflow-wrap: anywhere; }
.numbers td, .numbers th { padding: .2rem .6rem; font-size: .8rem; }
.numbers td:nth-child(-n+2), .numbers th:nth-child(-n+2), .numbers td:nth-child(4), .numbers th:nth-child(4)
  { text-align: left; }
.badge { display: inline-block; margin: 0 0 0 .4em; padding: 0 .5em; border: 1px dashed var(--soft); border-radius: 1em;
  color: var(--soft); font-size: .75rem; font-weight: 500; white-space: nowrap; }
article { margin: 3rem 0 0; scroll-margin-top: 1rem; }
figure { margin: .75rem 0 0; }
figure .scroll { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; }
figure img { display: block; margin: 0 auto; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
nav ol { margin: 0; padding-left: 1.75rem; columns: 20rem; column-gap: 2.5rem; }
li { margin: 0 0 .2rem; }
ol, ul { padding-left: 1.25rem; }
a { color: var(--accent); }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }
summary:focus-visible, a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
pre { margin: 0; padding: 1rem; background: var(--card); border-radius: .5rem; font-size: .78rem; line-height: 1.45;
  white-space: pre-wrap; }
@media (max-width: 40rem) {
  body { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  figure .scroll { padding: .5rem; margin: 0 -.5rem; }
  /* type stays readable: a wide figure is scrolled rather than shrunk */
  figure img { max-width: max(100%, 30rem); }
  tbody th { min-width: 9rem; }
}
@media print { body { max-width: none; } .scroll { overflow: visible; } article { break-inside: avoid; } }
"""

# the policy keeps a page that is opened anywhere from fetching or running anything
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="soft">$summary</p>
</header>
<main>
$body
</main>
</body>
</html>
""")
