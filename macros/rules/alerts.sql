{# The chance that noise alone gives a z of this height or more: a tail of the normal distribution, correct to a
   ten-millionth of itself (the Chebyshev fit of the complementary error function in Numerical Recipes, 6.2).
   PostgreSQL has none before 16. Above 30 it is told as for 30, where exp would underflow. #}
{% macro normal_tail(z) -%}
(
            select case when tail.x >= 0 then tail.p else 1 - tail.p end
            from (select cast({{ z }} as double precision) / sqrt(2) as x) as given
            cross join lateral (select given.x, 1 / (1 + least(abs(given.x), 21) / 2) as t, least(abs(given.x), 21) as height) as fit
            cross join lateral (
                select fit.x, t / 2 * exp(-height * height - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418
                    + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223
                    + t * 0.17087277))))))))) as p
            ) as tail
        )
{%- endmacro %}
