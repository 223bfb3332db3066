"""Trained nets in the forms that others read, each with what it takes to use it, and compared with its source.

Another form is a function in `forms` and a line in its FORMS.
"""
