"""The report's page: one file, its own style and script, nothing from the network."""

from string import Template

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<button type="button" id="theme" data-script hidden></button>
<h1>$title</h1>
<p class="soft">$summary</p>
$contents
</header>
<main>
$body
</main>
$data
<script>$script</script>
</body>
</html>
"""
)

# keeps a page that is opened anywhere from fetching anything, and from running any script but the one it names
POLICY = Template(
    "default-src 'none'; img-src data:; style-src $style; script-src $script; base-uri 'none'; form-action 'none'"
)
